"""Takes a network through a framework's quantization: `run` calibrates, `finetune` trains as well."""
