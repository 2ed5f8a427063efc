//! Weights as files hold them: safetensors and GGUF, memory-mapped, behind one table of names.
