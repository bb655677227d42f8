"""The commands. Their modules import only click and what is light; the rest when a command runs."""
