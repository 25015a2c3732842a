"""The page of `nexa report`. It needs the extra `report`, so only that verb imports it, when it is called."""
