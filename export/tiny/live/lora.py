"""Low-rank adaptation of the language model's linear layers (LoRA, arXiv 2106.09685), written in
PEFT's file layout."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from vicort.export.qwen2_5_vl.adapter import CONFIG_FILE, PREFIX, WEIGHTS_FILE

RANK = 24  # ours: the paper's 128 is a width of this model
ALPHA = 48.0  # paper: twice the rank
# paper: every linear layer of the language model
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraLinear(nn.Module):
    """base(x) + alpha / rank * B (A x). A begins as PEFT begins it, B at zero, so that at first
    nothing changes."""

    def __init__(self, base: nn.Linear, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(base.in_features, RANK, bias=False)
        self.lora_B = nn.Linear(RANK, base.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + ALPHA / RANK * self.lora_B(self.lora_A(x))


def wrap(model: Qwen2_5_VLForConditionalGeneration, seed: int) -> list[nn.Parameter]:
    """Freezes the model and puts a LoRA beside every linear layer of its language model; returns
    what is left to train."""
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for module in list(model.model.language_model.modules()):
        for name, child in list(module.named_children()):
            if name in TARGETS:
                setattr(module, name, LoraLinear(child, generator))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trained_state(model: Qwen2_5_VLForConditionalGeneration) -> dict[str, Tensor]:
    """The trained matrices."""
    return {name: value for name, value in model.state_dict().items() if ".lora_" in name}


def adapter_state(model: Qwen2_5_VLForConditionalGeneration) -> dict[str, Tensor]:
    """The trained matrices in bf16, under the names that PEFT gives them."""
    return {
        PREFIX + name: value.detach().bfloat16().contiguous()
        for name, value in trained_state(model).items()
    }


def save_adapter(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(adapter_state(model), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors makes it readable for the owner alone
    config = {
        "base_model_name_or_path": "tiny",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": list(TARGETS),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
