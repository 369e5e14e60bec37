"""A model of real size: vicort, transformers and OpenVINO GenAI on the same clip and question."""
