"""Win the accuracy back: fine-tune the pruned model under DeepSpeed ZeRO.

Nothing is imported here: `recover` and `settings` take seconds (trl), and what plans a training needs neither.
"""
