"""Chats of GLM-4.5: reasoning, tool calls, the thinking budget."""
