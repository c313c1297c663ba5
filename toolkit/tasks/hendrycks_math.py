"""Competition problems (Hendrycks et al., arXiv 2103.03874): 7,500 to train on, 5,000 to test; MATH-500 is a part of those.

    {"problem": "What is $\\frac{1}{2} - \\frac13$?", "solution": "… $= \\boxed{\\frac{1}{6}}.$", "level": "Level 1", …}

The answer stands in the solution's last `\\boxed{}`. Drawings (`[asy] … [/asy]`) stay: there are problems without sense else.
"""

from toolkit.tasks.preset import Preset

MATH_PRESET = Preset(
    about=r"competition mathematics (hub: DigitalLearningGmbH/MATH-lighteval), judged by math-verify, in \boxed{}",
    dataset="DigitalLearningGmbH/MATH-lighteval",
    train="train",
    test="test",
    prompt="{problem}\nThink step by step, then put the final answer in \\boxed{{}}.",
    completion="{solution}",
    scorer="math",
    sizes={"train": 7500, "test": 5000},
)
