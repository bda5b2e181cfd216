"""Pairs of prompts: what they hold, what makes two prompts a pair, templates that write them."""

from interp.prompts.pairs import PromptPairs as PromptPairs
