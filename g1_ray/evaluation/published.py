"""The results that the paper publishes: G1, arXiv 2505.13426, read off its figures.

Its protocol is runs of 100 moves: 10 of them, on Swap 100. The score of 2048 is the game's; of the others it is the
number of moves that scored, on Swap times 100. Its boards: 2048 4x4, Shisen-Sho 6x6 (8x8 in the script that evaluates),
Swap 8x8.
"""

PAPER_SCORES: dict[str, dict[str, str]] = {
    "2048": {"random": "701", "Qwen2.5-VL-7B": "246", "Claude 3.7 Sonnet": "892", "G0-7B": "759", "G1-7B": "1070"},
    "shisen": {"random": "0.4", "Qwen2.5-VL-7B": "1.9", "Claude 3.7 Sonnet": "15.3", "G0-7B": "12.8", "G1-7B": "17.5"},
    "shisen-photos": {
        "random": "0.4",
        "Qwen2.5-VL-7B": "0.4",
        "Claude 3.7 Sonnet": "8.7",
        "G0-7B": "8.0",
        "G1-7B": "14.1",
    },
    "swap": {"random": "1 (x100)", "Qwen2.5-VL-7B": "2 (x100)", "Claude 3.7 Sonnet": "43 (x100)", "G0-7B": "5 (x100)",
             "G1-7B": "78 (x100)"},
}  # fmt: skip
"""Game -> player -> score."""
