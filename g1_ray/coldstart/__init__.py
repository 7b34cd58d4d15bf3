"""The supervised stage of G1: a teacher's answers come in (`examples`, `dataset`), a tuned model goes out (`sft`).

May import every wing up to evaluation."""
