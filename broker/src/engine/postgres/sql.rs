//! The engine's own statements. Names in them are of the engine's alphabet, or quoted here.

/// Sessions whose role is no more: such of a role that was just dropped. Ends them, and counts them. Each
/// session's role is looked up by itself: `NOT EXISTS` would read all roles, and there may be many.
pub(super) const ORPHANS: &str = "SELECT count(pg_terminate_backend(s.pid)) \
    FROM pg_catalog.pg_stat_get_activity(NULL) s WHERE s.usesysid <> 0 \
    AND (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.oid = s.usesysid) IS NULL;";

/// The roles that a removal found, by their oids, which tell whose a session is when the role is no more;
/// 0 for one that was not there. Set by the removal, and read after it by [`SESSIONS`].
const FOUND: &str = "mayfly.found";

/// Sessions of the roles that the last removal found. Ends them, and counts them. Of a role that was not
/// there nobody can tell which are its: then those of all roles that are no more.
pub(super) fn sessions() -> String {
    format!(
        "SELECT count(pg_terminate_backend(s.pid)) FROM pg_catalog.pg_stat_get_activity(NULL) s \
         WHERE s.usesysid <> 0 AND (s.usesysid = ANY (current_setting('{FOUND}')::oid[]) \
         OR 0::oid = ANY (current_setting('{FOUND}')::oid[]) \
         AND (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.oid = s.usesysid) IS NULL);"
    )
}

/// Drops those of these roles that are there and need no more than that, and ends their sessions. One
/// that others hold a lock on is left, too: the others shall not wait for it.
pub(super) fn drop_roles(names: &[&str]) -> String {
    format!(
        "DO $mayfly$ DECLARE roles text[] := {}; it text; role oid; ids oid[] := ARRAY[]::oid[]; \
         BEGIN SET LOCAL lock_timeout = '100ms'; \
         PERFORM pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_get_activity(NULL) a \
         WHERE a.usesysid = ANY (ARRAY(SELECT oid FROM pg_catalog.pg_roles WHERE rolname = ANY (roles))); \
         FOREACH it IN ARRAY roles LOOP \
         role := coalesce((SELECT oid FROM pg_catalog.pg_roles WHERE rolname = it), 0::oid); \
         BEGIN EXECUTE 'DROP ROLE IF EXISTS \"' || it || '\"'; ids := array_append(ids, role); \
         EXCEPTION WHEN OTHERS THEN NULL; END; \
         END LOOP; PERFORM set_config('{FOUND}', ids::text, false); END $mayfly$;",
        array(names)
    )
}

/// Those of these roles that are there.
pub(super) fn which_roles(names: &[&str]) -> String {
    format!(
        "SELECT rolname FROM pg_catalog.pg_roles WHERE rolname = ANY ({});",
        array(names)
    )
}

fn array(names: &[&str]) -> String {
    format!("ARRAY['{}']", names.join("','"))
}

/// Ends the sessions of a role, if it is there, and drops it. Where that does not go, nobody can log in
/// as it any more; a lock of somebody else's is not waited for, and sessions that the broker's account may
/// not end are in the way of neither.
pub(super) fn drop_or_lock(name: &str) -> String {
    format!(
        "DO $mayfly$ DECLARE role oid := (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = '{name}'); \
         BEGIN PERFORM set_config('{FOUND}', ARRAY[coalesce(role, 0::oid)]::text, false); \
         IF role IS NULL THEN RETURN; END IF; \
         SET LOCAL lock_timeout = '250ms'; \
         BEGIN PERFORM pg_terminate_backend(pid) FROM pg_catalog.pg_stat_get_activity(NULL) \
         WHERE usesysid = role; EXCEPTION WHEN insufficient_privilege THEN NULL; END; \
         BEGIN DROP ROLE \"{name}\"; RETURN; EXCEPTION WHEN OTHERS THEN NULL; END; \
         SET LOCAL lock_timeout = '3s'; \
         IF (SELECT rolcanlogin FROM pg_catalog.pg_roles WHERE oid = role) THEN \
         ALTER ROLE \"{name}\" NOLOGIN PASSWORD NULL; END IF; END $mayfly$;"
    )
}

/// Nobody can log in as a role any more, if it is there and the broker's account may change it.
pub(super) fn lock_out(name: &str) -> String {
    format!(
        "DO $mayfly$ DECLARE role oid := (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = '{name}'); \
         BEGIN PERFORM set_config('{FOUND}', ARRAY[coalesce(role, 0::oid)]::text, false); \
         IF (SELECT rolcanlogin FROM pg_catalog.pg_roles WHERE oid = role) THEN \
         BEGIN ALTER ROLE \"{name}\" NOLOGIN PASSWORD NULL; EXCEPTION WHEN insufficient_privilege THEN NULL; END; \
         END IF; END $mayfly$;"
    )
}

/// Drops a role that `DROP ROLE` alone does not drop. What it owns in this database goes to `heir`, or
/// keeps it; what it was granted here is taken from it. `heir` is of letters, digits, `_`, `-` and `.`.
///
/// The heir must be a role that this one is a member of: then it has given away nothing that it could
/// not have given away itself.
pub(super) fn hand_over(name: &str, heir: Option<&str>) -> String {
    let owned = "s.deptype = 'o' AND s.dbid IN (0, (SELECT d.oid FROM pg_catalog.pg_database d \
        WHERE d.datname = current_database()))";
    let inherit = match heir {
        None => format!(
            "SELECT count(*) INTO many FROM pg_catalog.pg_shdepend s \
             WHERE s.refclassid = 'pg_catalog.pg_authid'::regclass AND s.refobjid = role AND {owned}; \
             IF many > 0 THEN RAISE dependent_objects_still_exist USING MESSAGE = format('it owns %s object(s) \
             in database %I; give them to somebody (REASSIGN OWNED BY %I TO ...), and name an heir in the \
             credential for those that follow', many, current_database(), '{name}'); END IF;"
        ),
        Some(heir) => format!(
            "IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles h WHERE h.rolname = '{heir}' \
             AND pg_has_role(role, h.oid, 'MEMBER')) THEN RAISE insufficient_privilege \
             USING MESSAGE = 'expected the heir {heir} to be a role that it is a member of'; END IF; \
             REASSIGN OWNED BY \"{name}\" TO \"{heir}\";"
        ),
    };
    format!(
        "DO $mayfly$ DECLARE role oid := (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = '{name}'); \
         many bigint; places text; \
         BEGIN IF role IS NULL THEN RETURN; END IF; \
         SELECT string_agg(DISTINCT format('%I', d.datname), ', ') INTO places \
         FROM pg_catalog.pg_shdepend s JOIN pg_catalog.pg_database d ON d.oid = s.dbid \
         WHERE s.refclassid = 'pg_catalog.pg_authid'::regclass AND s.refobjid = role \
         AND d.datname <> current_database(); \
         IF places IS NOT NULL THEN RAISE dependent_objects_still_exist USING MESSAGE = format('it owns or \
         was granted something in other databases, where only somebody who connects to them can take it \
         away (REASSIGN OWNED BY %I TO ..., DROP OWNED BY %I): %s', '{name}', '{name}', places); END IF; \
         IF NOT pg_has_role(role, 'USAGE') THEN GRANT \"{name}\" TO CURRENT_USER; END IF; \
         {inherit} DROP OWNED BY \"{name}\"; DROP ROLE \"{name}\"; END $mayfly$;"
    )
}

/// Ends the sessions of a role, and counts them.
pub(super) fn end_sessions(name: &str) -> String {
    format!(
        "SELECT count(pg_terminate_backend(a.pid)) FROM pg_catalog.pg_stat_activity a \
         WHERE a.usename = '{name}'"
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
