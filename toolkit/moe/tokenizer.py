"""Open tokenizers so that everything else can rely on them: they pad on the left, and have an end token and a pad token.

The small files beside a checkpoint's weights.
"""

from pathlib import Path
from typing import Any

from rich.markup import escape
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file
from transformers.utils.chat_template_utils import _compile_jinja_template

from toolkit.moe.open_errors import explained
from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError

TEMPLATE_FILE = "chat_template.jinja"
_told: set[str] = set()  # models whose end token was said to come from elsewhere


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the left; eos pads where there is no pad token.

    Where it names no end token, that of generation_config.json or config.json serves, and a line says so. Raises PollardError
    where there is none anywhere, and for files that cannot be read.
    """
    tokenizer = explained(lambda: AutoTokenizer.from_pretrained(path, revision=revision), path, "tokenizer")
    tokenizer.padding_side = "left"
    _check_template(tokenizer.chat_template, path, revision)
    if tokenizer.eos_token_id is None:
        token, file = _end_token(tokenizer, path, revision)
        tokenizer.add_special_tokens({"eos_token": token})  # one of its own: the vocabulary stays as it is
        if path not in _told:
            _told.add(path)
            say(escape(f"  the tokenizer of {path} names no end token: {token}, which {file} names, is used"))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _end_token(tokenizer: PreTrainedTokenizerBase, path: str, revision: str | None) -> tuple[str, str]:
    """The text of the end token, and the file that names it; of several, one that the chat template writes, else the first."""
    tried = []
    for file, numbers in _end_numbers(path, revision):
        tokens = [str(tokenizer.convert_ids_to_tokens(number)) for number in numbers if 0 <= number < len(tokenizer)]
        if tokens:
            return next((token for token in tokens if token in str(tokenizer.chat_template)), tokens[0]), file
        tried.append(f"{file}: {numbers or 'none'}")
    raise PollardError(
        f"The tokenizer of {path} has no end token, so nothing could learn where an answer ends: tokenizer_config.json has no "
        f"eos_token, and no eos_token_id of the model's is one of its {len(tokenizer):,} tokens ({'; '.join(tried) or 'none'}). "
        'Put it there: "eos_token": "</s>", or whatever ends a text in its vocabulary.'
    )


def _end_numbers(path: str, revision: str | None) -> list[tuple[str, list[int]]]:
    found: list[tuple[str, Any]] = []
    settings = load_generation_config(path, revision)
    if settings:
        found.append(("generation_config.json", settings.eos_token_id))
    if find_file(path, "config.json", revision):  # as it is written: where it says nothing, the family has numbers of its own
        config, _ = explained(lambda: PreTrainedConfig.get_config_dict(path, revision=revision), path, "configuration")
        text = config.get("text_config")
        found += [("config.json", part.get("eos_token_id")) for part in (config, text) if isinstance(part, dict)]
    listed = [(file, value if isinstance(value, list) else [value]) for file, value in found]
    return [(file, [number for number in numbers if type(number) is int]) for file, numbers in listed]


def _check_template(template: Any, path: str, revision: str | None) -> None:
    """Raises PollardError for a chat template that is no Jinja."""
    for name, text in (template if isinstance(template, dict) else {"default": template}).items():
        if not text:
            continue
        try:
            _compile_jinja_template(text)
        except Exception as error:
            file = TEMPLATE_FILE if find_file(path, TEMPLATE_FILE, revision) else "tokenizer_config.json"
            which = "" if name == "default" else f" {name!r}"
            line = f", line {error.lineno}" if hasattr(error, "lineno") else ""
            raise PollardError(
                f"The chat template{which} of {path} ({file}{line}) is no valid Jinja: {error}. Fetch the tokenizer again, or "
                "correct or remove the template."
            ) from error


def find_file(path: str, name: str, revision: str | None = None) -> str | None:
    """A file of a checkpoint folder, or of a hub model in the hub's cache (fetched where the hub is reached); None without it."""
    return explained(
        lambda: cached_file(
            path, name, revision=revision, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        ),
        path,
    )  # fmt: skip


def load_generation_config(path: str, revision: str | None = None) -> GenerationConfig | None:
    """What the checkpoint says of generation, such as its end tokens; None where it says nothing. Raises PollardError for a file
    that cannot be read, which transformers would ignore."""
    file = find_file(path, "generation_config.json", revision)
    if file is None:
        return None
    folder = str(Path(file).parent)
    settings = explained(lambda: GenerationConfig.from_pretrained(folder), folder, "generation settings")
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    if not all(end is None or type(end) is int for end in ends):
        raise PollardError(
            f"{file}: eos_token_id is {settings.eos_token_id!r}, and must be a token's number, or several: [1, 2]."
        )
    return settings
