"""How a model's numbers are held: recipes, bitsandbytes and its traps, quantized weights kept by content."""

from keystone.quantize.bitsandbytes_guards import (
    before_peft,
    bitsandbytes_problem,
    fast_nf4_on_this_cpu,
    is_repacked,
    prepare_for_training,
)
from keystone.quantize.layers import module_from_parts, parts_of, quantize, quantize_weight, weight_bytes
from keystone.quantize.recipes import (
    SCHEMES,
    Choice,
    Quantization,
    choose_recipe,
    default_quantization,
    int8_recipe,
    list_modules,
    quantizable_modules,
    recipe_for,
)

__all__ = [
    "SCHEMES",
    "Choice",
    "Quantization",
    "before_peft",
    "bitsandbytes_problem",
    "choose_recipe",
    "default_quantization",
    "fast_nf4_on_this_cpu",
    "int8_recipe",
    "is_repacked",
    "list_modules",
    "module_from_parts",
    "parts_of",
    "prepare_for_training",
    "quantizable_modules",
    "quantize",
    "quantize_weight",
    "recipe_for",
    "weight_bytes",
]
