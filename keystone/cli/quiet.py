"""What commands of this floor need beside what `csf` already has."""

import os
import warnings


def quiet_libraries(*, bars: bool = False) -> None:
    """Keep transformers from drawing bars and remarks between our lines; its errors still reach us as exceptions.

    Args:
        bars: leave huggingface_hub its bars: a download of hours is no time for silence.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # transformers renamed a method that peft still calls by its old name; nobody here can do anything about it.
    warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing", category=FutureWarning)
    from transformers.utils import logging  # noqa: PLC0415 - heavy, and only for commands that need it

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if not bars:
        from huggingface_hub.utils.tqdm import disable_progress_bars  # noqa: PLC0415 - as above

        disable_progress_bars()
