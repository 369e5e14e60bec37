"""Whether a checkpoint can be asked, found out before anything is exported."""

from __future__ import annotations

from pathlib import Path

from vicort.runtime.errors import EngineError
from vicort.runtime.language.prompt import Prompt
from vicort.runtime.language.template_files import MissingTemplateError

TOKENIZER = "tokenizer.json"


def check_prompt(checkpoint: Path, video_token: int) -> str:
    """A warning if the checkpoint has no chat template, which may be copied to its engine set too;
    "" = nothing is amiss. Raises EngineError if its tokenizer is missing, or that or its template
    fails, or a stream cannot be asked with them. video_token: the placeholder of visual tokens."""
    if not (checkpoint / TOKENIZER).is_file():
        older = [
            name for name in ("vocab.json", "tokenizer.model") if (checkpoint / name).is_file()
        ]
        raise EngineError(
            f"{checkpoint} has no {TOKENIZER}, which questions need: "
            + (
                f"it has {older[0]}; load it with transformers' AutoTokenizer, and "
                "`save_pretrained` writes the other"
                if older
                else "download the checkpoint again"
            )
        )
    try:
        Prompt(checkpoint, video_token)
    except MissingTemplateError as error:
        return f"{error} before you build, or to the engine set"
    return ""
