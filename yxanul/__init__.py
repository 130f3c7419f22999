"""Yxanul: compose, plan, train and measure small language models."""

__version__ = "0.1.0"
