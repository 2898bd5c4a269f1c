"""The table of pictures and rewards of a step, as a file that any program reads."""

import numpy as np
import pyarrow.parquet
from PIL import Image
from tests.preference.runs import ROWS, darkness


def test_the_table_has_what_rewards_said_of_the_pictures_beside_it(start):
    said = []

    def sometimes(prompts, completions, tag, **columns):
        values = [None if index % 2 else darkness(prompts, completions)[index] for index in range(len(prompts))]
        said.append((list(prompts), list(tag), [np.asarray(picture) for picture in completions], values))
        return values

    def half(prompts, completions, **columns):
        return [0.5] * len(prompts)

    parts = {"eval_dataset": [{"prompt": "a green cross", "tag": 9}]}
    settings = {"save_strategy": "no", "max_steps": 3, "evaluation_steps": 1, "logging_steps": 2}
    trainer = start(
        "nft", rewards=[sometimes, half], parts=parts, log_completions=True, reward_weights=[1, 2], **settings
    )
    trainer.train()
    folder = trainer.args.output_folder / "completions"
    assert [path.name for path in sorted(folder.glob("*.parquet"))] == [
        f"completions_{step:05d}.parquet" for step in (1, 2, 3)
    ]
    trained = [each for each in said if 9 not in each[1]]
    assert len(trained) == 3 and len(said) == 6
    for step, (prompts, tags, pictures, values) in enumerate(trained, start=1):
        table = pyarrow.parquet.read_table(folder / f"completions_{step:05d}.parquet").to_pydict()
        assert list(table) == ["step", "prompt", "completion", "sometimes", "half", "weighted_sum"]
        assert table["step"] == [step] * 6 and table["prompt"] == prompts == [ROWS[tag]["prompt"] for tag in tags]
        assert table["sometimes"] == values and table["half"] == [0.5] * 6
        assert table["weighted_sum"] == [1.0 + (value or 0.0) for value in values]
        for name, picture in zip(table["completion"], pictures, strict=True):
            assert np.array_equal(np.asarray(Image.open(folder / name)), picture)


def test_without_being_asked_for_no_table_is_written(start):
    trainer = start("grpo", save_strategy="no", max_steps=1)
    trainer.train()
    assert not (trainer.args.output_folder / "completions").exists()
