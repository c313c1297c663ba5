"""Tokenizers opened so that all code can rely on them, and a model's limits on tokens.

A tokenizer pads on the left, and has an end token and a pad token. The context length is what the configuration says:

    "max_position_embeddings": 40960, "rope_parameters": {"rope_type": "yarn", "factor": 4.0,
    "original_max_position_embeddings": 32768}      -> 131,072: what the scaled rotary embedding reaches
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file
from transformers.utils.chat_template_utils import _compile_jinja_template

from toolkit.moe.open_errors import explained
from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError

TEMPLATE_FILE = "chat_template.jinja"
_reported: set[str] = set()  # models whose end token comes from elsewhere, which a line has reported


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
        if path not in _reported:
            _reported.add(path)
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
        'Put it there: "eos_token": "</s>", or whatever ends a text in its vocabulary.',
        code="tokenizer.no-end-token",
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
                "correct or remove the template.",
                code="tokenizer.invalid-template",
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
            f"{file}: eos_token_id is {settings.eos_token_id!r}, and must be a token's number, or several: [1, 2].",
            code="tokenizer.invalid-end-token",
        )
    return settings


CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
NO_LIMIT = 10**9  # a tokenizer that knows none says 10^30


class ContextLength(NamedTuple):
    """The most tokens, prompt and answer together, and the key that says so."""

    tokens: int
    key: str

    def __str__(self) -> str:
        return f"the model's context of {self.tokens:,} tokens ({self.key})"


def context_length(config: Any, tokenizer: PreTrainedTokenizerBase | None = None) -> ContextLength | None:
    """None where there is no limit: without positions (Mamba, ALiBi) and without one that the tokenizer names.

    Scaled rotary embeddings reach as far as their factor says; a sliding window limits how far back a layer looks, not how
    long a text may be.
    """
    text = config.get_text_config()
    found = next(((name, getattr(text, name)) for name in CONTEXT_KEYS if isinstance(getattr(text, name, None), int)), None)
    if any(getattr(part, "alibi", False) for part in (text, getattr(text, "attn_config", None))):
        found = None
    if found and found[1] > 0:
        name, tokens = found
        return ContextLength(max(tokens, _scaled(text, tokens)), text.attribute_map.get(name, name))
    stated = getattr(tokenizer, "model_max_length", NO_LIMIT)
    return ContextLength(int(stated), "the tokenizer's model_max_length") if 0 < stated < NO_LIMIT else None


def _scaled(config: Any, tokens: int) -> int:
    """How far the rotary embedding reaches by its own account; layers of different kinds may have different ones."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [one for one in (parameters, *parameters.values()) if isinstance(one, dict)]
    reach = [tokens]
    for kind in kinds:
        factor, name = kind.get("factor") or 1.0, kind.get("rope_type", kind.get("type"))
        if name == "yarn":
            reach.append(int(factor * (kind.get("original_max_position_embeddings") or tokens)))
        elif name in ("linear", "dynamic"):
            reach.append(int(factor * tokens))
    return max(reach)


def longer_than_context(config: Any, tokenizer: PreTrainedTokenizerBase, lengths: Iterable[int]) -> int:
    """How many texts of so many tokens are longer than the model's context."""
    context = context_length(config, tokenizer)
    return sum(length > context.tokens for length in lengths) if context else 0


def embedding_rows(config: Any) -> int:
    """Tokens from this number on have no embedding."""
    return int(config.get_text_config().vocab_size)


def check_padding(config: Any) -> None:
    """Raises PollardError for a padding token that has no embedding: most families cannot even be built with it."""
    padding, rows = getattr(config.get_text_config(), "pad_token_id", None), embedding_rows(config)
    if isinstance(padding, int) and padding >= rows:
        raise PollardError(
            f"config.json: pad_token_id is {padding:,}, and the model's embedding has {rows:,} rows (vocab_size), numbered "
            "from 0. Give the number of a token that the model has (often eos_token_id), or null.",
            code="model.pad-token-without-embedding",
        )
