"""A push arrives whole, is repeated without sending anything twice, and says in one line what is wrong."""

import re

import pytest
from tests.hub.standin import TOKENS

SCRIPT = "push_runs.py"


def text(results, name):
    return results["refusals"][name]


# What arrives


def test_a_dry_run_prints_what_would_go_up_and_asks_no_network(results):
    found = results["whole_pipeline"]
    code, printed, errors = found["dry_run"]
    assert (code, errors, found["requests_of_dry_run"]) == (0, "", {})
    assert printed.startswith(f"pipeline {found['folder']}\n")
    assert "to tester/tiny, a model repository, branch next, private\n" in printed
    assert re.search(r"^ +8\.0 MB  model/model\.safetensors$", printed, re.MULTILINE)
    assert re.search(r"^ +9\.9 MB  in all, 22 files$", printed, re.MULTILINE)
    assert printed.endswith("nothing was sent (--dry-run)\n")
    assert {line.split()[-1] for line in printed.splitlines()[2:-2]} == set(found["files"]) - {".gitattributes"}


def test_the_command_pushes_a_pipeline_in_one_commit_and_prints_its_url(results, hub):
    found = results["whole_pipeline"]
    code, printed, _ = found["pushed"]
    assert code == 0 and "branch main, public" in printed
    repo = hub.repos["model", "tester/tiny"]
    assert repo.titles[:2] == ["initial commit", "First"]
    assert printed.splitlines()[-1] == f"{hub.endpoint}/tester/tiny/commit/{list(repo.commits)[1]}"
    weights = {path: size for path, size in found["files"].items() if path.endswith(".safetensors")}
    assert set(weights) == {
        "model/model.safetensors",
        "decoder/diffusion_pytorch_model.safetensors",
        "target_encoder/model.safetensors",
    }
    others = sum(size for path, size in found["files"].items() if not path.endswith("tokenizer.json"))
    assert others < 1.03 * sum(weights.values())  # weights are stored once


def test_a_repeated_push_sends_no_file_again(results):
    found = results["whole_pipeline"]
    assert not {"upload", "commit", "lfs_verify"} & found["requests_of_repetition"].keys()
    assert "upload" not in found["requests_of_small_change"]
    assert found["requests_of_small_change"]["commit"] == 1


def test_a_branch_is_made_and_leaves_main_alone(results):
    branches = results["whole_pipeline"]["branches"]
    assert branches["next"] == branches["main"] + 1
    assert results["whole_pipeline"]["to_a_tag"].startswith("PushError: A push goes to a branch. 'v1' is a tag of")


def test_every_kind_of_folder_is_known_and_features_become_a_dataset(results):
    assert results["other_kinds"]["reports"] == [
        ["processor", "tester/kind-processor", "model"],
        ["LoRA", "tester/kind-lora", "model"],
        ["model", "tester/kind-model", "model"],
        ["features", "tester/features", "dataset"],
    ]
    assert results["other_kinds"]["private"] == [False, False, False, True]
    assert "pytorch_lora_weights.safetensors" in results["other_kinds"]["files"][1]


def test_over_many_commits_a_file_that_names_others_comes_after_them(results, hub):
    commits = [set(files) for files in hub.repos["dataset", "tester/features"].commits.values()]
    shards = {f"targets-0000-{number:06d}.safetensors" for number in range(5)}
    assert len(commits) == 4  # the first one made the repository
    assert shards & commits[1] and not shards <= commits[1]
    assert all(shards <= files for files in commits if "index-targets.safetensors" in files)
    assert {"index-targets.safetensors", "manifest.json"} <= commits[-1]


def test_a_card_that_the_hub_does_not_take_is_named(results):
    assert results["other_kinds"]["bad_card"].startswith(
        "PushError: The Hub did not take the folder for tester/features. Invalid metadata in README.md."
    )


def test_private_means_private(results, hub):
    found = results["visibility"]
    assert found["private"] is True and found["left_alone"] is True
    assert hub.repos["model", "tester/hidden"].private
    assert "tester/hidden is private, and private=False was asked for" in found["public_asked"]
    code, printed, errors = found["private_asked"]
    assert (code, printed) == (2, "")
    assert errors.startswith(
        "blip3o-hf push: A push does not change the visibility of a repository. tester/kind-model is"
    )
    assert len(hub.repos["model", "tester/kind-model"].titles) == 2  # nothing was sent to the public


def test_weights_of_an_earlier_push_do_not_stay_beside_new_ones(results):
    shards = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    fixed = {".gitattributes", "README.md", "config.json"}
    index, other = "model.safetensors.index.json", "pytorch_lora_weights.safetensors"
    assert set(results["shards"]["three"]) == {*fixed, *shards, index}
    assert set(results["shards"]["one"]) == {*fixed, other, "model.safetensors"}
    assert set(results["shards"]["three_again"]) == {*fixed, other, *shards, index}


# What goes wrong


def test_an_interrupted_push_goes_on_where_it_stopped(results):
    found = results["interruption"]
    assert found["error"].startswith(
        "PushError: The Hub must take every file for tester/cut. The connection to the Hub"
    )
    assert found["error"].endswith("Push again with the same command: files that arrived are not sent again.")
    assert found["files_meanwhile"] == [".gitattributes"]  # readers saw none of it
    assert found["requests"]["upload"] == 2  # of three
    assert found["requests"]["commit"] == 1
    assert len(found["files"]) == 7


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("create 401", ["A push to tester/refused needs a write token. The Hub answered 401", "`hf auth login`"]),
        ("preupload 401", ["A push to tester/refused needs a write token. The Hub answered 401", "`hf auth login`"]),
        ("commit 401", ["A push to tester/refused needs a write token. The Hub answered 401", "`hf auth login`"]),
        ("create 403", ["needs a token that may write there. The Hub answered 403", "/settings/tokens"]),
        ("preupload 403", ["needs a token that may write there. The Hub answered 403", "/settings/tokens"]),
        ("commit 403", ["needs a token that may write there. The Hub answered 403", "`hf auth login`"]),
        ("upload 403", ["needs a token that may write there. The Hub answered 403", "`hf auth login`"]),
        (
            "preupload 404",
            ["needs a repository that its token may see", "for the model tester/refused. Check the name"],
        ),
        ("commit 409", ["must not run at the same time", "tester/refused changed during this one. Push again"]),
        ("commit 412", ["must not run at the same time", "tester/refused changed during this one. Push again"]),
        ("commit 413", ["The Hub did not take the folder for tester/refused. The Hub answered 413", "told to fail"]),
        ("reading token", ["A push to tester/kind-model needs a token that may write there.", "`hf auth login`"]),
        ("reading token, private", ["A push to tester/new needs a token that may write there."]),
        ("wrong token", ["A push to tester/kind-model needs a write token.", "`hf auth login`"]),
        ("other owner", ["A push to somebody/model needs a token that may write there.", "a repository of your own"]),
        ("ignored", ["tester/ignoring lacks 1 of them, config.json among them", ".gitignore"]),
    ],
)
def test_a_refusal_says_what_is_needed_in_one_line(results, name, texts):
    message = text(results, name)
    assert message.startswith("PushError: ") and "\n" not in message
    for expected in texts:
        assert expected in message


@pytest.mark.parametrize(
    ("name", "waited"),
    [
        ("create 429", [7.0]),  # as the Hub asks
        ("create 500", [1.0, 2.0, 4.0]),
        ("preupload 503", [1, 2]),
        ("commit 429", [11.0]),
        ("commit 503", [1.0, 2.0, 4.0, 8.0]),
        ("upload cut", [1, 2]),
        ("commit cut", [1.0, 2.0]),
        ("answer lost", [1.0]),
    ],
)
def test_a_busy_hub_is_waited_for(results, name, waited):
    found = results["busy"][name]
    assert (found["error"], found["waited"]) == ("", waited)
    assert set(found["files"]) == {".gitattributes", "README.md", "config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("commit 503 for ever", "The Hub answered 503 Service Unavailable, 6 times. Push again"),
        ("commit 429 for ever", "The Hub answered 429 Too Many Requests, 6 times. Push again"),
        ("cut for ever", "The connection to the Hub was lost ("),
    ],
)
def test_a_hub_that_stays_away_ends_the_push_with_the_way_out(results, name, outcome):
    found = results["busy"][name]
    assert outcome in found["error"] and "files that arrived are not sent again" in found["error"]
    assert found["waited"] == [1.0, 2.0, 4.0, 8.0, 8.0]
    assert found["files"] == [".gitattributes"]


# Secrets and cost


def test_tokens_stand_in_the_authorization_header_alone(runs, hub):
    results, printed = runs
    assert hub.leaks == []
    assert "Bearer" not in printed
    for token in [*TOKENS, "hf_" + "x" * 34]:
        assert token not in printed and token not in str(results)
    stored = b"".join(hub.objects.values())
    assert not any(token.encode() in stored for token in TOKENS)


def test_the_stand_in_knows_every_request(runs, hub):
    assert hub.unknown == []


def test_a_push_loads_no_torch(results):
    assert results["loaded"] == []
