"""The agent: answers the laptop's requests on the machine."""
