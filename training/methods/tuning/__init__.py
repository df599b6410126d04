"""The tuning methods, one file each: the file `name.py` is the method `name` (`lora_moe.py` is `lora-moe`).

Each module has a function `make`, which builds a `training.methods.method.Method` from a `Setup`. It may have
a function `check(model, config)`, which raises an error if the method cannot train the model.
"""
