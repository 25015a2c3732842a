"""The warm interpreter that ranks are forked from. Off by default; deleting this folder removes it."""
