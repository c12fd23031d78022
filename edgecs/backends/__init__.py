"""The engines. llama_cpp and onnxruntime are imported here and nowhere else."""
