"""A run that is to be pushed needs no network before it has something to push."""

SCRIPT = "trainer_push_runs.py"


def test_training_with_push_to_hub_asks_the_hub_for_nothing(results):
    assert results["requests_of_training"] == {}


def test_the_result_is_pushed_whole_once_it_has_a_licence(results):
    assert "licen" in results["without_licence"].lower()
    assert results["requests_of_push"]["commit"] == 1
    assert results["pushed"]["private"]
    assert {"model_index.json", "model/model.safetensors", "README.md"} <= set(results["pushed"]["files"])


def test_the_pushed_repository_draws_what_the_saved_folder_does(results):
    assert results["drawn"] == {"size": [64, 64], "is_equal": True}


def test_a_mistyped_name_is_one_request_and_one_line(runs):
    results, printed = runs
    assert results["code"] == 2 and results["requests_of_mistake"] == {"info": 1}
    assert "There is no folder 'tester/trainde' here, and the Hub shows no model of that name." in printed
