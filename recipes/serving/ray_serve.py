"""Several replicas of `blip3o-hf serve` behind one address, with Ray Serve, on one machine or many.

    pip install -e '.[serve]' 'ray[serve]>=2.60'
    serve run --app-dir recipes/serving ray_serve:build model=blip3o-tiny replicas=2

A key is read from BLIP3O_API_KEY where a replica runs: set it on every machine before `ray start`.
"""

import os
import sys
from typing import TYPE_CHECKING

from pydantic import BaseModel
from ray import cloudpickle, serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig

if TYPE_CHECKING:
    from starlette.applications import Starlette

KEY = "BLIP3O_API_KEY"
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # so that replicas need not find this file


class Options(BaseModel, extra="forbid"):
    """
    What `serve run` takes as `name=value`.

    Args:
        model: packaged name, folder or Hub id, as of `blip3o-hf serve --model`; a folder must be on every machine.
        name: of the model in requests; by default as `blip3o-hf serve` names it.
        replicas: how many hold the model.
        cpus, gpus: of each replica; half a GPU is 0.5.
        batch: pictures that a replica draws together at most.
        waiting: requests that wait for a replica; others get 429.
        seconds: for an answer.
        allowed_hosts: without a key, names under which the server may be asked beside those of the machine, with
            commas between them.
    """

    model: str = "blip3o-tiny"
    name: str | None = None
    replicas: int = 1
    cpus: float = 1
    gpus: float = 0
    batch: int = 8
    waiting: int = 64
    seconds: float = 600
    allowed_hosts: str = ""


def application(options: Options) -> "Starlette":
    """The server of one replica, which loads the model."""
    from blip3o_hf import Blip3oReconstructionPipeline
    from blip3o_hf.cli.models import load_pipeline
    from blip3o_hf.cli.serve import served_name
    from blip3o_hf.serving.guard import hosts_of_machine
    from blip3o_hf.serving.server import Server, ServerSettings

    pipe = load_pipeline(options.model)
    pipe.set_progress_bar_config(disable=True)
    try:
        reconstruction = Blip3oReconstructionPipeline.from_pipe(pipe)
    except (ValueError, OSError):  # it has no target encoder
        reconstruction = None
    key = os.environ.get(KEY, "").strip()
    settings = ServerSettings(
        name=options.name or served_name(options.model),
        api_keys=(key,) if key else (),
        allowed_hosts=hosts_of_machine(*filter(None, options.allowed_hosts.split(","))),
        request_seconds=options.seconds,
        max_batch=options.batch,
    )
    return Server(pipe, settings, reconstruction).app()


def build(options: Options) -> Application:
    """What `serve run` deploys."""

    def in_replica() -> "Starlette":
        return application(options)

    deployment = serve.deployment(
        serve.ingress(in_replica)(),
        name="blip3o",
        num_replicas=options.replicas,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        # One batch is drawn and one waits; further requests wait for the replica that is free first.
        max_ongoing_requests=2 * options.batch,
        max_queued_requests=options.waiting,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=options.seconds,
    )
    return deployment.bind()
