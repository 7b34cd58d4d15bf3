"""The supervised stage of G1, before reinforcement learning.

A teacher's answers with the true board come in (`examples`, `dataset`), a fine-tuned model goes out (`sft`).
May import every wing up to evaluation.
"""
