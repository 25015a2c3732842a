from tests.state import own_state

own_state()
