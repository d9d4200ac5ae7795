"""Values only: settings, request, plan, machine, estimates."""
