from tests.state import own_places

own_places()
