"""How users' turns begin in the text that a search trains on.

Told nothing, a small target writes about few subjects, and a draft that learns them agrees less on others. These name what
language models are asked for at large; none is taken from a task's prompts, and any text that holds one of those is refused
when the draft is measured.
"""

from __future__ import annotations

PROMPT_TEMPERATURE = 0.8
"""At which the target goes on from a prefix."""
PROMPT_PREFIXES = (
    *("What is", "Why does", "How can I", "Explain how", "Tell me more about", "Is it true that"),
    *("I need advice about", "My neighbour", "Plan a day", "Recommend some", "Help me decide"),
    *(
        "Write a tale about",
        "Write a letter to",
        "Write a blog post on",
        "Draft a message that",
        "Write a short poem",
    ),
    *(
        "Write a function in Python that",
        "Implement",
        "class",
        "def",
        "What does this program print?",
        "Find the bug:",
    ),
    *("Write an SQL query", "Write a shell script that", "Convert this code to"),
    *("A train leaves", "How many", "Compute", "If a box holds", "Solve for x:", "Show every step:"),
    *("Translate to French:", "Translate to German:", "Traduis en anglais :", "Translate to Spanish:"),
    *("Summarize:", "In one paragraph, sum up this text:", "What are the main points of the following?"),
    *("Read the text and answer.", "According to the passage below,", "Sources: [1]"),
    *("Call the right function for this request:", "Reply in JSON.", "Extract the names from"),
    *("List ten", "Compare the two:", "Make this sound friendlier:", "Correct the grammar:"),
)
"""Each is used as often as the others."""
