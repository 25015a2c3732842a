"""What the agent looks at while an attempt goes on."""
