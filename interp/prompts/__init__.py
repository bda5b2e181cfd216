"""Pairs of prompts: their content, the checks that two prompts form a pair, and templates that write them."""

from interp.prompts.pairs import PromptPairs as PromptPairs
