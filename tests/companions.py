"""What people keep beside the weights, and the law that it comes along whatever is done to these."""

import json
from pathlib import Path
from typing import Any

FILES = {
    "preprocessor_config.json": "{}", "processor_config.json": '{"a":  1}', "tokenizer.model": "pieces", "LICENSE": "words\r\n",
    "modeling_my.py": "class MyModel: pass\n", "configuration_my.py": "class MyConfig: pass\n", "README.md": "# The original\n",
    "additional_chat_templates/tools.jinja": "{{ tools }}", "my_code/__init__.py": "", "my_code/deep/layers.py": "1",
    "generation_config.json": '{"max_new_tokens":77,   "eos_token_id": 1}',
}  # fmt: skip
LEFT = {
    "skipping.json": "{}", "model.fp16.safetensors": "half", "consolidated.safetensors": "twice", "pytorch_model.bin": "again",
    "adapter_model.safetensors": "on top", "original/params.json": "{}", "x.json.tmp": "half", ".cache/a": "",
}  # fmt: skip
CONFIG = {"auto_map": {"AutoConfig": "configuration_my.MyConfig"}, "a_key_of_another_reader": {"b": [1]}}


def add_companions(folder: Path, without: str = "") -> None:
    """Puts companions, and what is none, into a checkpoint folder, but for one file."""
    for name, content in (FILES | LEFT).items():
        if name == without:
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode())
    write_config(folder, read_config(folder) | CONFIG)


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def check_companions(source: Path, target: Path, **changed: Any) -> None:
    """Every companion of `source` is in `target`, byte for byte, nothing else is, and its configuration but for `changed`."""
    tokenizer = {path.name for path in source.glob("*token*") if path.is_file()} | {"chat_template.jinja"}
    expected = {name for name in {*FILES, *tokenizer} if (source / name).exists()}
    for name in expected:
        assert (target / name).read_bytes() == (source / name).read_bytes(), name
    files = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file() and "safetensors" not in path.name}
    assert files == {*expected, "config.json", "pollard.json"}
    assert read_config(target) == read_config(source) | changed
