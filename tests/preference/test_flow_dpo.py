"""Direct preference optimization: pairs of pictures that people chose, or that rewards did."""

import math

import datasets
import pytest
import torch
from tests.preference.runs import StopAt, changed, history, weights

from blip3o_hf.models.adapters import lora_config


@pytest.fixture
def pairs(make_image):
    return [
        {"prompt": prompt, "chosen": make_image(2 * index), "rejected": make_image(2 * index + 1)}
        for index, prompt in enumerate(["a red circle", "two blue squares", "a green cross", "three circles"])
    ]


@pytest.fixture
def offline(start, pairs):
    """`offline(rows, **settings)`: a trainer of pairs."""

    def make(rows=None, **settings):
        settings = {"save_strategy": "no", "max_steps": 2, **settings}
        return start("dpo", rewards=None, rows=pairs if rows is None else rows, **settings)

    return make


def swapped(rows):
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]


def gradients(trainer, rows):
    """Of the loss of rows on the model as it is."""
    task, model = trainer.task, trainer.model
    model.zero_grad()
    generators = [torch.Generator().manual_seed(index) for index in range(len(rows))]
    loss, _ = task._compared(model, task._encoded(task(rows)), generators)
    loss.mean().backward()
    return loss, {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def test_at_the_reference_the_loss_is_log_2_and_swapping_turns_the_gradient_around(offline, pairs):
    trainer = offline()
    loss, first = gradients(trainer, pairs)
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(2)))
    _, second = gradients(trainer, swapped(pairs))
    assert first and any(value.abs().max() > 0 for value in first.values())
    largest = max(value.abs().max().item() for value in first.values())
    for name, value in first.items():
        torch.testing.assert_close(second[name], -value, atol=1e-4 * largest, rtol=1e-3)


def test_it_learns_from_a_list_of_rows_what_is_chosen(offline, pairs):
    trainer = offline(max_steps=8, learning_rate=3e-3, beta=100.0)
    before = weights(trainer)
    trainer.train()
    names = changed(trainer, before)
    assert names and all(name.startswith("transformer.") for name in names)
    assert history(trainer, "loss")[0] == pytest.approx(math.log(2), abs=1e-3) and history(trainer, "loss")[-1] < 0.65
    names = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "errors/chosen", "kl")
    assert all(len(history(trainer, name)) == 8 for name in names)
    assert history(trainer, "kl")[0] == 0 < history(trainer, "kl")[-1]
    found, other = trainer.evaluate(pairs), trainer.evaluate(swapped(pairs))
    assert found["eval_loss"] < math.log(2) < other["eval_loss"]
    assert found["eval_rewards/accuracies"] > 0.5 and trainer.evaluate(pairs) == found
    assert found["eval_rewards/margins"] == pytest.approx(-other["eval_rewards/margins"], rel=1e-3)


def test_datasets_with_columns_of_images_teach_the_same(offline, pairs):
    features = {"prompt": datasets.Value("string"), **{side: datasets.Image() for side in ("chosen", "rejected")}}
    table = datasets.Dataset.from_list(pairs, features=datasets.Features(features))
    undecoded = table.cast_column("chosen", datasets.Image(decode=False))
    trainers = [offline(rows) for rows in (pairs, table, undecoded)]
    for trainer in trainers:
        trainer.train()
    for trainer in trainers[1:]:
        assert not changed(trainer, weights(trainers[0]))
    found = offline(parts={"eval_dataset": {"held_out": table}}).evaluate()
    assert found["eval_held_out_loss"] == pytest.approx(math.log(2)) and "eval_held_out_rewards/accuracies" in found


def test_with_adapters_a_resumed_run_equals_the_uninterrupted_one(offline, make_model):
    def trainer(folder, **settings):
        model = make_model()
        parts = {"peft_config": lora_config(model, rank=2, train_queries=False)}
        return offline(folder=folder, model=model, parts=parts, max_steps=3, **settings)

    whole = trainer("whole")
    whole.train()
    trainer("part", callbacks=[StopAt(1)], save_strategy="steps", save_steps=1).train()
    again = trainer("part")
    again.train(resume_from_checkpoint=True)
    assert not changed(again, weights(whole)) and history(again, "loss") == history(whole, "loss")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rejected": None},
            r"a picture under `rejected`\. train_dataset\[0\] has none\. Its columns are prompt, chosen",
        ),
        ({"prompt": ""}, r"a text under `prompt`\. train_dataset\[0\] has ''"),
        (
            {"chosen": b"no picture"},
            r"must be readable\. Got chosen of train_dataset\[0\]: not a readable .* leave this row",
        ),
        ({"chosen": 5}, r"A picture must be a PIL image, .* chosen of train_dataset\[0\] is int\. Cast the column"),
        ({"chosen": "nowhere.png"}, r"Got chosen of train_dataset\[0\]: no image file at nowhere\.png\. Replace it"),
    ],
)
def test_a_pair_that_lacks_something_is_named(offline, pairs, change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        offline([{**pairs[0], **change}])


def test_equal_pictures_are_no_preference(offline, pairs, make_image):
    same = {"prompt": "a", "chosen": make_image(3), "rejected": make_image(3)}
    with pytest.raises(
        ValueError, match=r"`chosen` and `rejected` of train_dataset\[0\] are the same\. Leave this row"
    ):
        offline([same])
    with pytest.raises(ValueError, match=r"`rejected` of train_dataset\[2\] are the same"):
        offline([*pairs[:2], same]).train()


@pytest.mark.parametrize(
    "settings",
    [{"num_iterations": 2}, {"min_diversity": 0.5}, {"log_completions": True}, {"reward_patience": 1}],
    ids=lambda each: next(iter(each)),
)
def test_what_is_of_drawn_pictures_needs_rewards(offline, settings):
    with pytest.raises(ValueError, match=rf"nothing is drawn\. Got `{next(iter(settings))}`, .* pass `reward_funcs`"):
        offline(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0}, "`beta` must be a number above 0. Got 0."),
        ({"label_smoothing": 0.5}, r"`label_smoothing` must be in \[0, 0\.5\)\. Got 0\.5"),
        ({"train_levels_per_sample": 0}, "`train_levels_per_sample` must be a whole number of at least 1. Got 0."),
    ],
)
def test_bad_settings_are_refused(offline, settings, message):
    with pytest.raises(ValueError, match=message):
        offline(**settings)


def test_online_the_best_and_the_worst_of_a_group_are_a_pair(start):
    """Of the second prompt all pictures are alike, and the third of each group has no reward."""

    def reward(prompts, completions, **columns):
        said = [0.1, 0.9, None] * (len(prompts) // 3)
        return [0.1 if prompt.startswith("two") else value for prompt, value in zip(prompts, said, strict=True)]

    trainer = start("dpo", rewards=reward, max_steps=1, save_strategy="no", train_sampling_strategy="sequential")
    seen, plain = [], trainer.task._compared
    trainer.task._compared = lambda model, pairs, *others: (
        seen.append((pairs, others[-1])) or plain(model, pairs, *others)
    )
    trainer.train()
    ((pairs, counted),) = seen
    drawn = trainer.task.kept[0]["features"]
    (group,) = counted.nonzero().flatten().tolist()
    assert torch.equal(pairs["chosen"][group], drawn[3 * group + 1])
    assert torch.equal(pairs["rejected"][group], drawn[3 * group])
    assert history(trainer, "frac_pairs") == [0.5] and history(trainer, "rewards/chosen") == [0]
    assert history(trainer, "loss")[0] == pytest.approx(math.log(2) / 2, rel=1e-3)
