"""One run: its plan, folder and exports."""
