from .lora import LoRA as LoRA, LoRALayer as LoRALayer, fold as fold
