"""
Whether a model of the Hub can be loaded: this gives an error at once, while loading itself tries again for half a
minute.
"""

import httpx2
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

SECONDS = 10
"""How long the Hub may take to answer."""
_FILES = ("model_index.json", "config.json", "adapter_config.json")


def check_reachable(repo_id: str) -> None:
    """
    Ask the Hub once for a model that is not on this machine.

    Args:
        repo_id: `owner/name`.

    Raises:
        OSError: when there is no such model, or the Hub cannot be reached.
    """
    if any(isinstance(try_to_load_from_cache(repo_id, name), str) for name in _FILES):
        return
    try:
        HfApi().model_info(repo_id, timeout=SECONDS)
    except RepositoryNotFoundError as error:
        raise OSError(
            f"A model must be a folder or on the Hub. There is no folder {repo_id!r} here, and the Hub shows no model "
            f"of that name. Check the spelling; a private model needs `hf auth login`."
        ) from error
    except HFValidationError as error:
        raise OSError(
            f"A model must be a folder or on the Hub. {repo_id!r} is neither ({error}). Check it."
        ) from error
    except OfflineModeIsEnabled as error:
        raise OSError(
            f"A model of the Hub must be loaded once with a network. {repo_id!r} is no folder here and was never "
            f"loaded, and HF_HUB_OFFLINE is set. Unset it, or name a folder."
        ) from error
    except (HfHubHTTPError, httpx2.TransportError) as error:
        raise OSError(
            f"A model must be a folder or on the Hub. There is no folder {repo_id!r} here, and the Hub did not answer "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}). Check the name and the network."
        ) from error
