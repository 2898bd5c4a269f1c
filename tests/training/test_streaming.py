"""Streams in the Trainer: a resumed run equals the uninterrupted one, and processes share the records once."""

import json
import re
import shutil
from functools import partial
from itertools import islice

import pytest
import torch
from tests.processes import run_script
from tests.training import streaming_runs
from tests.training.streaming_runs import NUM_DRAWN, STEPS

from blip3o_hf.training.checkpoints import last_complete_checkpoint

SHARDS = (3, 2, 3)


@pytest.fixture(scope="module")
def images(tmp_path_factory, make_image):
    """Eight images with captions in three shards."""
    folder = tmp_path_factory.mktemp("images")
    start = 0
    for shard, length in enumerate(SHARDS):
        lines = []
        for number in range(start, start + length):
            make_image(number).save(folder / f"{number}.png")
            lines.append(json.dumps({"image": f"{number}.png", "caption": f"picture {number}"}) + "\n")
        (folder / f"{shard}.jsonl").write_text("".join(lines))
        start += length
    return folder


@pytest.fixture(scope="module")
def make_trainer(images):
    """`make_trainer(folder, num_workers=0, **training)`: the decoder stage on these images."""
    return partial(streaming_runs.make_trainer, images)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def copy_checkpoint(source, target, step):
    name = f"checkpoints/checkpoint-{step}"
    shutil.copytree(source / name, target / name)
    return last_complete_checkpoint(target / "checkpoints")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_equals_the_uninterrupted_one_in_any_epoch(make_trainer, tmp_path, num_workers):
    whole = make_trainer(tmp_path / "whole", num_workers)
    whole.train()
    assert whole.state.global_step == STEPS
    for step in (2, 6):  # within the first epoch of eight items, and within the second
        resumed = make_trainer(tmp_path / str(step), num_workers)
        resumed.train(resume_from_checkpoint=copy_checkpoint(tmp_path / "whole", tmp_path / str(step), step))
        assert resumed.state.global_step == STEPS
        for name, value in weights(whole).items():
            assert torch.equal(weights(resumed)[name], value), name
        assert all(
            torch.equal(mine, other)
            for mine, other in zip(resumed.average.average, whole.average.average, strict=True)
        )
        losses = [
            {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
            for trainer in (resumed, whole)
        ]
        assert losses[0] == losses[1]


def test_the_number_of_micro_batches_counts(make_trainer, tmp_path):
    whole = make_trainer(tmp_path / "whole", gradient_accumulation_steps=2, max_steps=4)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", gradient_accumulation_steps=2, max_steps=4)
    resumed.train(resume_from_checkpoint=copy_checkpoint(tmp_path / "whole", tmp_path / "resumed", 2))
    assert all(torch.equal(weights(resumed)[name], value) for name, value in weights(whole).items())


@pytest.fixture(scope="module")
def checkpoint(make_trainer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("short")
    make_trainer(folder, max_steps=2).train()
    return last_complete_checkpoint(folder / "checkpoints")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"per_device_train_batch_size": 4},
            "A stream must go on with the same batches as before. After 2 steps its workers had given [4] items, and "
            "with these settings it would be [8]. Set `per_device_train_batch_size`, `gradient_accumulation_steps`",
        ),
        ({"num_workers": 2}, "its workers had given [4] items, and with these settings it would be [2, 2]."),
        (
            {"data": {"seed": 4}},
            "A stream must go on in the same order as before. Its state has `seed` 3 and the stream has 4.",
        ),
    ],
)
def test_a_run_with_other_batches_is_refused(make_trainer, tmp_path, checkpoint, settings, message):
    trainer = make_trainer(tmp_path, **settings)
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer.train(resume_from_checkpoint=checkpoint)


def test_a_checkpoint_without_a_stream_is_refused(make_trainer, tmp_path, checkpoint):
    copy = shutil.copytree(checkpoint, tmp_path / "checkpoints" / "checkpoint-2")
    (copy / "stream.json").unlink()
    message = "To resume with `streaming: true`, the checkpoint must hold the place of the stream. There is no"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        make_trainer(tmp_path).train(resume_from_checkpoint=str(copy))


def test_processes_share_the_records_and_nothing_divides_them_again(images, make_trainer, tmp_path):
    """Each process gets its own part of the stream, whole: the parts are known to hold everything once."""
    run_script("training/streaming_runs.py", images, tmp_path, timeout=200)
    stream = make_trainer(tmp_path).train_dataset
    for rank in range(2):
        stream.rank, stream.world_size = rank, 2
        expected = [record.prompt for record in islice(stream, NUM_DRAWN)]
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"per_device_train_batch_size": 2}, "= 2. Set training.gradient_accumulation_steps=6, or leave"),
        ({"per_device_train_batch_size": 5}, "= 5. No number of micro-batches fits: choose training.per_device_train"),
    ],
)
def test_another_global_batch_is_refused_at_the_start(make_trainer, tmp_path, settings, advice):
    size = settings["per_device_train_batch_size"]
    message = f"`global_batch_size` records, 12. Got {size} a process x 1 processes x 1 micro-batches {advice}"
    with pytest.raises(ValueError, match=re.escape(message)):
        make_trainer(tmp_path, global_batch_size=12, **settings)


def test_the_global_batch_that_was_asked_for_is_taken(make_trainer, tmp_path):
    settings = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}
    assert make_trainer(tmp_path, global_batch_size=12, **settings).args.gradient_accumulation_steps == 4
