"""Implement `kdcore completion`."""

from __future__ import annotations

import argparse

from argcomplete.shell_integration import shellcode

import kdcore


class CompletionCommand(kdcore.Command):
    """Print shell code that enables completion for `kdcore` and `kdcore-train`.

    bash: eval "$(kdcore completion bash)" in ~/.bashrc
    zsh:  eval "$(kdcore completion zsh)" in ~/.zshrc, after compinit
    fish: kdcore completion fish > ~/.config/fish/completions/kdcore.fish

    The code completes commands, options, shipped recipes, recipe keys and their values, and names of components.
    """

    help = "print the code for completion in bash, zsh or fish"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare SHELL."""
        parser.add_argument("shell", choices=("bash", "zsh", "fish"))

    def run(self, arguments: argparse.Namespace) -> int:
        """Print the code."""
        programs = ["kdcore", "kdcore-train"]
        print(shellcode(programs, shell=arguments.shell, argcomplete_script="kdcore-complete"))
        return 0
