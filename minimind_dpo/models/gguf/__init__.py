"""GGUF, the file that llama.cpp and ollama run: architecture, vocabulary, writing, reading back."""
