"""Fetches a repository of the Hugging Face Hub: safetensors, configuration and tokenizer only."""

from pathlib import Path

from rtp_serve.errors import CheckpointError, ModelNotFound

_TOKENIZER_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
)
_CHECKPOINT_FILES = (*_TOKENIZER_FILES, "*.safetensors", "*.safetensors.index.json")
_LEFT_OUT = ("*/*", "consolidated*")  # other formats' folders, and a second copy of the weights


def fetch_repository(repo_id: str, revision: str | None, *, with_weights: bool) -> Path:
    """The repository's directory in the Hub library's own cache; that library shows progress.

    Raises ModelNotFound if there is no such repository or revision, CheckpointError if it cannot
    be reached or `huggingface_hub` is not installed.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise CheckpointError(
            f"model {repo_id!r} is a Hugging Face repository, which needs the package "
            "huggingface-hub: pip install 'rtp-serve[hub]'"
        ) from error
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=list(_CHECKPOINT_FILES if with_weights else _TOKENIZER_FILES),
                ignore_patterns=list(_LEFT_OUT),
            )
        )
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"Hugging Face repository {repo_id!r} is gated: accept its terms and set HF_TOKEN"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ModelNotFound(f"no Hugging Face repository {repo_id!r}{at}") from error
    except (errors.HTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"Hugging Face repository {repo_id!r} cannot be fetched and is not cached: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
