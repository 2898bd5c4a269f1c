"""One model behind OpenAI's images and chat API. [docs/serving.md](../../../docs/serving.md)."""
