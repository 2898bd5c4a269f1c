"""An evaluation harness that knows OpenAI's API alone scores the model behind a server."""

import json
import os
import subprocess
import sys

import pytest

from blip3o_hf.evaluation.chat_answers import ChatAnswerer


@pytest.mark.slow
def test_lmms_eval_gets_the_answers_of_the_model_itself(live, shapes_task, tmp_path):
    pytest.importorskip("lmms_eval")
    datasets = pytest.importorskip("datasets")
    settings = f"model_version=blip3o-tiny,base_url={live.url}/v1,api_key=none,num_concurrent=8"
    command = [sys.executable, "-m", "lmms_eval", "--model", "openai", "--model_args", settings]
    command += ["--tasks", "shapes_questions", "--include_path", str(shapes_task), "--batch_size", "1"]
    command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (tmp_path / "out").glob("**/*_samples_shapes_questions.jsonl")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    rows = datasets.load_dataset("parquet", data_files=str(shapes_task / "shapes.parquet"))["train"]
    conversations = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": row["image"]}, {"type": "text", "text": row["question"]}],
            }
        ]
        for row in rows
    ]
    expected = ChatAnswerer.load("blip3o-tiny")(conversations, max_new_tokens=20)
    assert [sample["filtered_resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])] == expected
