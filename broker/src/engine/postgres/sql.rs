//! The engine's own statements. Names in them are of the engine's alphabet, or quoted here.

/// Sessions whose role is no more: such of a role that was just dropped. Ends them, and counts them. Each
/// session's role is looked up by itself: `NOT EXISTS` would read all roles, and there may be many.
pub(super) const ORPHANS: &str = "SELECT count(pg_terminate_backend(s.pid)) \
    FROM pg_catalog.pg_stat_get_activity(NULL) s WHERE s.usesysid <> 0 \
    AND (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.oid = s.usesysid) IS NULL;";

/// Removes a role, if it is there. What it owns goes to the broker's account, what it was granted is
/// taken from it; that costs more, so it is done only where the role cannot be dropped without.
pub(super) fn drop_role(name: &str) -> String {
    format!(
        "DO $mayfly$ DECLARE role oid := (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = '{name}'); \
         BEGIN IF role IS NULL THEN RETURN; END IF; \
         PERFORM pg_terminate_backend(pid) FROM pg_catalog.pg_stat_get_activity(NULL) WHERE usesysid = role; \
         BEGIN DROP ROLE \"{name}\"; \
         EXCEPTION WHEN dependent_objects_still_exist THEN \
         IF NOT pg_has_role(role, 'USAGE') THEN GRANT \"{name}\" TO CURRENT_USER; END IF; \
         REASSIGN OWNED BY \"{name}\" TO CURRENT_USER; DROP OWNED BY \"{name}\"; DROP ROLE \"{name}\"; \
         END; END $mayfly$;"
    )
}

/// Ends the sessions of a role.
pub(super) fn end_sessions(name: &str) -> String {
    format!(
        "SELECT pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE usename = '{name}';"
    )
}

/// How many roles of that name there are.
pub(super) fn count_roles(name: &str) -> String {
    format!("SELECT count(*) FROM pg_catalog.pg_roles WHERE rolname = '{name}'")
}

/// Makes a role last longer.
pub(super) fn extend(name: &str, expiration: &str) -> String {
    format!("ALTER ROLE \"{name}\" VALID UNTIL '{expiration}';")
}

/// Gives any role a password. `user` may hold anything.
pub(super) fn set_password(user: &str, verifier: &str) -> String {
    let user = user.replace('"', "\"\"");
    format!("ALTER ROLE \"{user}\" PASSWORD '{verifier}';")
}
