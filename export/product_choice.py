"""How each product of a calibrated model is quantised, as an engine set stores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vicort.export.qwen2_5_vl.language import LanguageModel
from vicort.runtime.errors import EngineError

CHOICES_FILE = "calibration.safetensors"  # in an engine set
FIELDS = ("mean_square", "inputs", "outputs", "largest")
Rule = Literal["data-free", "weighted", "awq", "smooth"]
# norms of a layer, and the products that read them
READERS = {
    "input_layernorm": "self_attn.joined.weight",
    "post_attention_layernorm": "mlp.joined.weight",
}


@dataclass(frozen=True)
class ProductChoice:
    """Of one product x W, W [in,out]. (x / inputs) (inputs W) is the same product, and so is the
    next one if its inputs, this one's outputs, are divided and its matrix multiplied."""

    # of its inputs x / inputs, by which errors of weights are weighted; None: all are equal
    mean_square: Tensor | None = None  # [in] float32
    # what the norm or the product before divides its outputs by; None: one
    inputs: Tensor | None = None  # [in] float32
    # what the columns are divided by, for the product after it; None: one
    outputs: Tensor | None = None  # [out] float32
    # max |x| of its inputs, once they are divided; None: they are not rounded
    largest: Tensor | None = None  # [] float32

    @property
    def rule(self) -> Rule:
        if self.mean_square is None:
            return "data-free"
        return "weighted" if self.inputs is None else "awq"

    def folded(self, matrix: Tensor) -> Tensor:
        """The matrix [in,out] that is rounded."""
        if self.inputs is not None:
            matrix = matrix.float() * self.inputs[:, None]
        if self.outputs is not None:
            matrix = matrix.float() / self.outputs
        return matrix


DATA_FREE = ProductChoice()
Choices = Mapping[str, ProductChoice]  # by parameter name


def fold_norms(language: LanguageModel, choices: Choices) -> None:
    """Divide the weights of norms in place by what the products that read them multiply with."""
    for index, layer in enumerate(language.layers):
        for name, reader in READERS.items():
            choice = choices.get(f"layers.{index}.{reader}", DATA_FREE)
            if choice.inputs is not None:
                norm = layer.get_submodule(name)
                weight = folded_norm(norm.get_parameter("weight"), choice.inputs)
                norm.register_parameter("weight", nn.Parameter(weight, requires_grad=False))


def folded_norm(weight: Tensor, inputs: Tensor) -> Tensor:
    """[in], of the weight's type."""
    return (weight.float() / inputs).to(weight.dtype)


def write_choices(choices: Choices, folder: Path) -> None:
    from safetensors.torch import save

    tensors = {
        f"{name}.{field}": tensor.contiguous()
        for name, choice in choices.items()
        for field in FIELDS
        if (tensor := getattr(choice, field)) is not None
    }
    (folder / CHOICES_FILE).write_bytes(save(tensors))


def read_choices(folder: Path) -> dict[str, ProductChoice]:
    """Of an engine set; none if it was not calibrated. Raises EngineError if its file is
    damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / CHOICES_FILE
    if not path.is_file():
        return {}
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise EngineError(f"{path} is damaged ({error}): build the set again") from error
    fields: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        name, _, field = key.rpartition(".")
        fields.setdefault(name, {})[field] = tensor.to(torch.float32)
    return {name: ProductChoice(**each) for name, each in fields.items()}
