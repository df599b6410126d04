"""The tuning methods, one file each: the file `name.py` is the method `name` (`lora_moe.py` is `lora-moe`).

Each module holds `make`, which builds a `training.methods.method.Method` from a `Setup`.
"""
