"""The privacy mechanisms that can be chosen by name: stages of contributions, on devices and on their sum."""
