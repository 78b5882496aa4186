use super::*;
use crate::error::ErrorKind;

fn env(vars: &[(&str, &str)]) -> Result<Config> {
    let owned = vars.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    Config::default().apply_env(owned)
}

#[track_caller]
fn message(result: Result<Config>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    error.to_string()
}

/// A configuration in which no value is the default.
fn other() -> Config {
    Config {
        enable: false,
        job: false,
        task_limit: 51,
        task_max_retry: 6,
        first_execute_second: 7,
        delay_base_second: 11,
        delay_multiplier: 2.5,
        data_kept_day: 8,
        thread_pool_param: ThreadPoolParam {
            core_pool_size: 1,
            max_pool_size: 20,
            keep_alive_seconds: 61,
            queue_capacity: 0,
        },
        failed_kept_day: 90,
        max_delay_second: 3600,
        jitter: 0.25,
        lease_second: 5,
        poll_interval_ms: 250,
        max_crash: 1,
        shutdown_grace_second: 0,
        time_zone: "+08:00".parse().unwrap(),
        #[cfg(feature = "xxl-job")]
        xxl_job: None,
    }
}

const OTHER: [(&str, &str); 20] = [
    ("TASK_RETRY__ENABLE", "false"),
    ("TASK_RETRY__JOB", "OFF"),
    ("TASK_RETRY__TASK_LIMIT", "51"),
    ("TASK_RETRY__TASK_MAX_RETRY", "6"),
    ("TASK_RETRY__FIRST_EXECUTE_SECOND", "7"),
    ("TASK_RETRY__DELAY_BASE_SECOND", "11"),
    ("TASK_RETRY__DELAY_MULTIPLIER", "2.5"),
    ("TASK_RETRY__DATA_KEPT_DAY", "8"),
    ("TASK_RETRY__THREAD_POOL_PARAM__CORE_POOL_SIZE", "1"),
    ("TASK_RETRY__THREAD_POOL_PARAM__MAX_POOL_SIZE", " 20 "),
    ("TASK_RETRY__THREAD_POOL_PARAM__KEEP_ALIVE_SECONDS", "61"),
    ("TASK_RETRY__THREAD_POOL_PARAM__QUEUE_CAPACITY", "0"),
    ("TASK_RETRY__FAILED_KEPT_DAY", "90"),
    ("TASK_RETRY__MAX_DELAY_SECOND", "3600"),
    ("TASK_RETRY__JITTER", "0.25"),
    ("TASK_RETRY__LEASE_SECOND", "5"),
    ("TASK_RETRY__POLL_INTERVAL_MS", "250"),
    ("TASK_RETRY__MAX_CRASH", "1"),
    ("TASK_RETRY__SHUTDOWN_GRACE_SECOND", "0"),
    ("TASK_RETRY__TIME_ZONE", "+08:00"),
];

#[test]
fn defaults_are_valid_and_give_the_default_policy() {
    let config = Config::default();
    config.validate().unwrap();
    assert_eq!(config.policy(), RetryPolicy::default());
    assert_eq!(config.lease(), Duration::from_secs(30));
    assert_eq!(config.poll_interval(), Duration::from_secs(1));
    assert_eq!(config.shutdown_grace(), Duration::from_secs(30));
    assert_eq!(config.keep_alive(), Duration::from_secs(60));
    assert_eq!(config.data_kept(), Some(Duration::from_secs(7 * 86_400)));
    assert_eq!(config.failed_kept(), None);
}

#[test]
fn every_key_has_its_variable() {
    assert_eq!(env(&OTHER).unwrap(), other());
    assert_eq!(env(&[]).unwrap(), Config::default());
    other().validate().unwrap();
}

#[test]
fn other_variables_are_left_alone() {
    let vars =
        [("PATH", "/bin"), ("TASK_RETRY_TOKEN", "x"), ("TASK_RETRY", "y"), ("任务_任务_任", "")];
    assert_eq!(env(&vars).unwrap(), Config::default());
}

#[test]
fn a_variable_changes_one_key_of_what_is_below_it() {
    let vars = [("TASK_RETRY__TASK_LIMIT".to_owned(), "9".to_owned())];
    let config = other().apply_env(vars.into_iter()).unwrap();
    assert_eq!(config, Config { task_limit: 9, ..other() });
}

#[test]
fn unknown_variables_name_the_known_ones() {
    let text = message(env(&[("TASK_RETRY__TASK_LIMT", "5")]));
    assert!(text.starts_with(
        "TASK_RETRY__TASK_LIMT is unknown: did you mean `TASK_RETRY__TASK_LIMIT`? \
         known here: `TASK_RETRY__ENABLE`, `TASK_RETRY__JOB`, "
    ));
    for (name, _) in OTHER {
        assert!(text.contains(&format!("`{name}`")), "{name}");
    }
    let text = message(env(&[("TASK_RETRY__THREAD_POOL_PARAM_MAX_POOL_SIZE", "5")]));
    assert!(
        text.contains("did you mean `TASK_RETRY__THREAD_POOL_PARAM__MAX_POOL_SIZE`?"),
        "{text}"
    );
    let text = message(env(&[("TASK_RETRY__RABBIT__VIRTUAL_HOST", "5")]));
    assert!(
        text.starts_with("TASK_RETRY__RABBIT__VIRTUAL_HOST is unknown: known here: "),
        "{text}"
    );
}

#[cfg(not(feature = "xxl-job"))]
#[test]
fn a_section_of_a_feature_that_is_missing_names_it() {
    let text = message(env(&[("TASK_RETRY__XXL_JOB__PORT", "5")]));
    let expected =
        "task-retry.xxl-job.port (TASK_RETRY__XXL_JOB__PORT) is for the cargo feature `xxl-job`";
    assert!(text.starts_with(expected), "{text}");
    #[cfg(feature = "config")]
    for yaml in ["task-retry: { xxl-job: { port: 1 } }", "task-retry: { xxlJob: {} }"] {
        let text = message(Config::from_yaml(yaml));
        assert!(text.contains("is for the cargo feature `xxl-job` of task-retry"), "{text}");
    }
}

#[cfg(feature = "xxl-job")]
mod xxl_job {
    use super::*;
    use crate::xxl_job::{CallbackShape, XxlJobConfig};

    #[test]
    fn every_key_has_its_variable() {
        let config = env(&[
            ("TASK_RETRY__XXL_JOB__ADMIN_ADDRESSES", "http://a:1/xxl, https://b/"),
            ("TASK_RETRY__XXL_JOB__ACCESS_TOKEN", "secret"),
            ("TASK_RETRY__XXL_JOB__APP_NAME", "shop"),
            ("TASK_RETRY__XXL_JOB__ADDRESS", "http://shop:80/"),
            ("TASK_RETRY__XXL_JOB__IP", "0.0.0.0"),
            ("TASK_RETRY__XXL_JOB__PORT", "9998"),
            ("TASK_RETRY__XXL_JOB__LOG_PATH", "/var/log/shop"),
            ("TASK_RETRY__XXL_JOB__LOG_RETENTION_DAYS", "3"),
            ("TASK_RETRY__XXL_JOB__CALLBACK_SHAPE", "object"),
            ("TASK_RETRY__XXL_JOB__TIMEOUT_SECOND", "5"),
            ("TASK_RETRY__XXL_JOB__WITH_WORKERS", "yes"),
        ])
        .unwrap();
        config.validate().unwrap();
        let expected = XxlJobConfig {
            admin_addresses: vec!["http://a:1/xxl".into(), "https://b/".into()],
            access_token: Some("secret".into()),
            app_name: Some("shop".into()),
            address: Some("http://shop:80/".into()),
            ip: "0.0.0.0".parse().unwrap(),
            port: 9998,
            log_path: Some("/var/log/shop".into()),
            log_retention_days: 3,
            callback_shape: CallbackShape::Object,
            timeout_second: 5,
            with_workers: true,
        };
        assert!(!format!("{config:?}").contains("secret"), "{config:?}");
        assert_eq!(config.xxl_job, Some(expected));
        assert_eq!(Config::default().xxl_job, None);
    }

    #[cfg(feature = "config")]
    #[test]
    fn the_section_is_read_from_files() {
        let yaml = "
            task-retry:
              xxlJob:
                admin-addresses: ['http://a/xxl', 'http://b/xxl,http://c']
                accessToken: ''
                port: 0
        ";
        let config = Config::from_yaml(yaml).unwrap();
        config.validate().unwrap();
        let toml = "[task-retry.xxl-job]\nadmin-addresses = 'http://a/xxl, http://b/xxl,http://c'\n\
                    port = 0";
        assert_eq!(config, Config::from_toml(toml).unwrap());
        let section = config.xxl_job.unwrap();
        assert_eq!(section.admin_addresses, ["http://a/xxl", "http://b/xxl", "http://c"]);
        assert_eq!((section.access_token, section.port), (None, 0));
        assert_eq!(Config::from_yaml("task-retry: { xxl-job: }").unwrap().xxl_job, None);
        // Another program's section of that name.
        Config::from_yaml("xxl-job: { anything: 1 }").unwrap();
    }

    #[cfg(feature = "config")]
    #[test]
    fn mistakes_say_what_is_allowed_and_show_no_token() {
        let yaml = "
            task-retry:
              xxl-job: { access-token: 271828, ip: localhost, port: 65536, callback-shape: 3.5,
                log-retention-days: 0, appname: 1 }
        ";
        assert_eq!(
            message(Config::from_yaml(yaml)),
            "6 mistakes:\n\
             - task-retry.xxl-job.access-token is not a text: put it in quotes\n\
             - task-retry.xxl-job.ip is \"localhost\": it must be an address of this machine, such as \
             127.0.0.1\n\
             - task-retry.xxl-job.port is 65536: it must be at most 65535 (0: any that is free)\n\
             - task-retry.xxl-job.callback-shape is 3.5: it must be `auto`, `array` (admins up to 3.4) \
             or `object` (admins from 3.5)\n\
             - task-retry.xxl-job.log-retention-days is 0: it must be at least 1 (days)\n\
             - task-retry.xxl-job.app-name is 1: it must be a text, put it in quotes"
        );
        let config = Config::from_yaml(
            "task-retry: { xxl-job: { ip: 0.0.0.0, address: 'shop:9999', app-name: 商店 } }",
        );
        let text = message(config.and_then(|config| config.validate().map(|()| config)));
        for part in [
            "task-retry.xxl-job.admin-addresses is missing",
            "task-retry.xxl-job.access-token is missing: with ip 0.0.0.0",
            "task-retry.xxl-job.address is \"shop:9999\": it must be a URL",
            "task-retry.xxl-job.app-name is \"商店\": it must be 1 to 64 printable ASCII",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let text = message(Config::from_yaml("task-retry: { xxl-job: { prt: 1 } }"));
        assert!(
            text.contains("did you mean `xxl-job.port`? known here: `admin-addresses`"),
            "{text}"
        );
    }
}

#[test]
fn bad_variables_are_named_both_ways() {
    let cases = [
        ("LEASE_SECOND", "2", "is 2: it must be at least 5 (seconds)"),
        ("LEASE_SECOND", "", "is \"\": it must be a whole number from 5 to 315360000 (seconds)"),
        ("JOB", "2", "is \"2\": it must be true or false"),
        ("JITTER", "NaN", "is \"NaN\": it must be a number from 0 to 1"),
        ("JITTER", "inf", "is inf: it must be at most 1"),
    ];
    for (name, value, expected) in cases {
        let variable = format!("TASK_RETRY__{name}");
        let key = name.to_lowercase().replace('_', "-");
        let text = message(env(&[(&variable, value)]));
        assert_eq!(text, format!("task-retry.{key} ({variable}) {expected}"));
    }
    assert_eq!(
        message(env(&[("TASK_RETRY__JOB", "true"), ("task_retry__job", "false")])),
        "task-retry.job (TASK_RETRY__JOB) is given twice"
    );
}

#[test]
fn validate_reports_every_bad_value() {
    let config = Config {
        task_limit: 0,
        delay_multiplier: f64::NAN,
        thread_pool_param: ThreadPoolParam { max_pool_size: 0, ..ThreadPoolParam::default() },
        max_delay_second: u64::MAX,
        jitter: 1.5,
        lease_second: 2,
        poll_interval_ms: 9,
        ..Config::default()
    };
    assert_eq!(
        config.validate().unwrap_err().to_string(),
        "7 mistakes:\n\
         - task-retry.task-limit is 0: it must be at least 1 (rows)\n\
         - task-retry.delay-multiplier is NaN: it must be a number from 1 to 1000\n\
         - task-retry.thread-pool-param.max-pool-size is 0: it must be at least 1 (attempts)\n\
         - task-retry.max-delay-second is 18446744073709551615: it must be at most 315360000 (seconds)\n\
         - task-retry.jitter is 1.5: it must be at most 1\n\
         - task-retry.lease-second is 2: it must be at least 5 (seconds)\n\
         - task-retry.poll-interval-ms is 9: it must be at least 10 (milliseconds)"
    );
}

#[test]
fn the_overlay_changes_what_is_set() {
    let mut config = other();
    Overlay::default().apply(&mut config);
    assert_eq!(config, other());

    let all = other();
    let overlay = Overlay {
        enable: Some(all.enable),
        job: Some(all.job),
        task_limit: Some(all.task_limit),
        task_max_retry: Some(all.task_max_retry),
        first_execute_second: Some(all.first_execute_second),
        delay_base_second: Some(all.delay_base_second),
        delay_multiplier: Some(all.delay_multiplier),
        data_kept_day: Some(all.data_kept_day),
        core_pool_size: Some(all.thread_pool_param.core_pool_size),
        max_pool_size: Some(all.thread_pool_param.max_pool_size),
        keep_alive_seconds: Some(all.thread_pool_param.keep_alive_seconds),
        queue_capacity: Some(all.thread_pool_param.queue_capacity),
        failed_kept_day: Some(all.failed_kept_day),
        max_delay_second: Some(all.max_delay_second),
        jitter: Some(all.jitter),
        lease_second: Some(all.lease_second),
        poll_interval_ms: Some(all.poll_interval_ms),
        max_crash: Some(all.max_crash),
        shutdown_grace_second: Some(all.shutdown_grace_second),
        time_zone: Some(all.time_zone),
    };
    let mut config = Config::default();
    overlay.apply(&mut config);
    assert_eq!(config, other());
}

#[test]
fn offsets_are_read_and_shown() {
    let cases = [
        ("+08:00", 28_800, "+08:00"),
        ("-05:30", -19_800, "-05:30"),
        ("+8", 28_800, "+08:00"),
        ("GMT+8", 28_800, "+08:00"),
        ("utc-3:00", -10_800, "-03:00"),
        ("+18:00", 64_800, "+18:00"),
        ("-00:00", 0, "+00:00"),
        ("Z", 0, "+00:00"),
        ("z", 0, "+00:00"),
        (" UTC ", 0, "+00:00"),
        ("GMT", 0, "+00:00"),
    ];
    for (text, seconds, shown) in cases {
        let offset: UtcOffset = text.parse().unwrap();
        assert_eq!((offset.seconds(), offset.to_string().as_str()), (seconds, shown), "{text}");
        assert_eq!(offset.to_string().parse(), Ok(offset));
    }
    let bad = [
        "",
        "8",
        "08:00",
        "+",
        "+18:01",
        "-19:00",
        "+8:0",
        "+08:60",
        "+0800",
        "+08:00:00",
        "+-8:00",
        "+8:-1",
        "+ 8",
        "Asia/Shanghai",
        "CST",
        "ZZ",
        "UTCZ",
        "+０８:00",
        "é",
        "+99:99",
    ];
    for text in bad {
        assert!(text.parse::<UtcOffset>().is_err(), "{text}");
    }
    assert_eq!(UtcOffset::from_seconds(-3661).unwrap().to_string(), "-01:01:01");
    assert_eq!(UtcOffset::from_seconds(i32::MIN), None);
}

#[test]
fn no_variable_panics() {
    fastrand::seed(4);
    for _ in 0..3000 {
        let name = format!("TASK_RETRY__{}", random_text(20));
        let _ = env(&[(&name, &random_text(30)), (&random_text(12), "")]);
        let (name, _) = OTHER[fastrand::usize(0..OTHER.len())];
        if let Ok(config) = env(&[(name, &random_text(6))]) {
            config.validate().unwrap();
        }
        let _ = random_text(8).parse::<UtcOffset>();
    }
}

/// Any text: pieces of documents, and characters from everywhere.
fn random_text(most: usize) -> String {
    const PIECES: &[&str] = &[
        "task-retry",
        "taskRetry",
        ":",
        ": ",
        "\n",
        "\n  ",
        " ",
        "[",
        "]",
        "{",
        "}",
        ",",
        "-",
        "- ",
        "=",
        "\"",
        "'",
        ".",
        "__",
        "&a ",
        "*a",
        "<<: ",
        "!!str ",
        "|",
        ">",
        "#",
        "---\n",
        "...",
        "?",
        "task-limit",
        "taskLimit",
        "thread-pool-param",
        "time-zone",
        "jitter",
        "lease-second",
        "1",
        "-1",
        "0.5",
        "1e999",
        ".nan",
        ".inf",
        "nan",
        "inf",
        "0x10",
        "true",
        "null",
        "~",
        "+08:00",
        "2020-01-01",
        "99999999999999999999",
        "\u{feff}",
        "\0",
        "\t",
        "\r\n",
        "%",
        "é",
        "任务",
        "😀",
    ];
    let mut text = String::new();
    for _ in 0..fastrand::usize(0..=most) {
        match fastrand::u8(0..8) {
            0 => text.push(fastrand::char(..)),
            1 => text.push(fastrand::char(' '..='~')),
            _ => text.push_str(PIECES[fastrand::usize(0..PIECES.len())]),
        }
    }
    text
}

#[cfg(feature = "config")]
mod files {
    use super::*;

    const YAML: &str = r#"
        spring:
          datasource: { url: "jdbc:mysql://db/shop", password: secret }
        server.port: 8080
        task-retry:
          enable: false
          job: false
          task-limit: 51
          task-max-retry: 6
          first-execute-second: 7
          delay-base-second: 11
          delay-multiplier: 2.5
          data-kept-day: 8
          thread-pool-param: { core-pool-size: 1, max-pool-size: 20, keep-alive-seconds: 61, queue-capacity: 0 }
          failed-kept-day: 90
          max-delay-second: 3600
          jitter: 0.25
          lease-second: 5
          poll-interval-ms: 250
          max-crash: 1
          shutdown-grace-second: 0
          time-zone: "+08:00"
    "#;

    const TOML: &str = r#"
        title = "shop"
        released = 2024-02-29

        [task-retry]
        enable = false
        job = false
        task-limit = 51
        task-max-retry = 6
        first-execute-second = 7
        delay-base-second = 11
        delay-multiplier = 2.5
        data-kept-day = 8
        failed-kept-day = 90
        max-delay-second = 3600
        jitter = 0.25
        lease-second = 5
        poll-interval-ms = 250
        max-crash = 1
        shutdown-grace-second = 0
        time-zone = "+08:00"

        [task-retry.thread-pool-param]
        core-pool-size = 1
        max-pool-size = 20
        keep-alive-seconds = 61
        queue-capacity = 0

        [server]
        port = 8080
    "#;

    #[test]
    fn every_key_is_read_from_yaml_and_toml() {
        assert_eq!(Config::from_yaml(YAML).unwrap(), other());
        assert_eq!(Config::from_toml(TOML).unwrap(), other());
    }

    #[test]
    fn the_defaults_of_the_documentation_are_the_defaults() {
        let page = include_str!("../config.rs");
        let yaml: String = page
            .lines()
            .skip_while(|line| *line != "/// ```yaml")
            .skip(1)
            .take_while(|line| *line != "/// ```")
            .map(|line| line.trim_start_matches("/// ").to_owned() + "\n")
            .collect();
        assert_eq!(yaml.matches(": ").count(), 20, "{yaml}");
        assert_eq!(Config::from_yaml(&yaml).unwrap(), Config::default());
    }

    #[test]
    fn without_a_section_there_are_the_defaults() {
        for yaml in [
            "",
            "# nothing\n",
            "---\n",
            "spring: {}",
            "task-retry:",
            "task-retry: {}",
            "1: one\nnull: two",
            "task-retry:\n  thread-pool-param:\n",
            "timeZone: x\njob: { a: 1 }",
        ] {
            assert_eq!(Config::from_yaml(yaml).unwrap(), Config::default(), "{yaml}");
        }
        for toml in
            ["", "# nothing\n", "[spring]", "[task-retry]", "[task-retry.thread-pool-param]"]
        {
            assert_eq!(Config::from_toml(toml).unwrap(), Config::default(), "{toml}");
        }
    }

    #[test]
    fn keys_may_be_spelled_in_every_way() {
        let expected = env(&[
            ("TASK_RETRY__TASK_LIMIT", "9"),
            ("TASK_RETRY__THREAD_POOL_PARAM__MAX_POOL_SIZE", "8"),
        ])
        .unwrap();
        for yaml in [
            "task-retry: { task-limit: 9, thread-pool-param: { max-pool-size: 8 } }",
            "taskRetry: { taskLimit: 9, threadPoolParam: { maxPoolSize: 8 } }",
            "task_retry: { task_limit: 9, thread_pool_param: { max_pool_size: 8 } }",
            "task-retry: { TASK_LIMIT: 9, thread-pool-param.maxPoolSize: 8 }",
            "task-retry.task-limit: 9\ntask-retry.threadPoolParam: { max-pool-size: 8 }",
            "task-retry: { task-limit: '9', thread-pool-param: { max-pool-size: ' 8' } }",
        ] {
            assert_eq!(Config::from_yaml(yaml).unwrap(), expected, "{yaml}");
        }
        let starter = "task-retry:\n  thread-pool-param:\n    corePoolSize: 1\n    maxPoolSize: 20\n    \
                       keepAliveSeconds: 61\n    queueCapacity: 0\n";
        let config = Config::from_yaml(starter).unwrap();
        assert_eq!(config.thread_pool_param, other().thread_pool_param);
        let config = Config::from_toml("[task_retry]\ndelayMultiplier = 3").unwrap();
        assert_eq!(config.delay_multiplier, 3.0);
        let anchors = "defaults: &d { task-limit: 9 }\ntask-retry: { <<: *d, job: no }";
        let config = Config::from_yaml(anchors).unwrap();
        assert_eq!((config.task_limit, config.job), (9, false));
    }

    #[test]
    fn each_bad_value_says_what_is_allowed() {
        let cases = [
            ("lease-second: 2", "lease-second is 2: it must be at least 5 (seconds)"),
            ("task-limit: -1", "task-limit is -1: it must be at least 1 (rows)"),
            ("task-limit: 10001", "task-limit is 10001: it must be at most 10000 (rows)"),
            (
                "task-max-retry: 5000000000",
                "task-max-retry is 5000000000: it must be at most 2147483647 (retries)",
            ),
            (
                "task-limit: many",
                "task-limit is \"many\": it must be a whole number from 1 to 10000 (rows)",
            ),
            (
                "data-kept-day: 1.5",
                "data-kept-day is 1.5: it must be a whole number from 0 to 36500 (days, 0: for ever)",
            ),
            (
                "max-crash:",
                "max-crash is empty: it must be a whole number from 0 to 1000 (crashes)",
            ),
            (
                "max-crash: [1]",
                "max-crash is a list: it must be a whole number from 0 to 1000 (crashes)",
            ),
            (
                "max-crash: { a: 1 }",
                "max-crash is a section: it must be a whole number from 0 to 1000 (crashes)",
            ),
            (
                "lease-second: 050",
                "lease-second is 50.0: it must be a whole number from 5 to 315360000 (seconds)",
            ),
            ("enable: 1", "enable is 1: it must be true or false"),
            ("enable: maybe", "enable is \"maybe\": it must be true or false"),
            ("jitter: true", "jitter is true: it must be a number from 0 to 1"),
            ("jitter: .nan", "jitter is NaN: it must be a number from 0 to 1"),
            ("jitter: .inf", "jitter is inf: it must be at most 1"),
            ("delay-multiplier: 0", "delay-multiplier is 0: it must be at least 1"),
            (
                "time-zone: Asia/Shanghai",
                "time-zone is \"Asia/Shanghai\": it must be an offset such as \"+08:00\", \
                 from -18:00 to +18:00, or UTC",
            ),
            (
                "time-zone: 8",
                "time-zone is 8: it must be an offset such as \"+08:00\", from -18:00 to +18:00, \
                 or UTC",
            ),
            (
                "thread-pool-param: 5",
                "thread-pool-param is 5: it must be a section with `core-pool-size`, \
                 `max-pool-size`, `keep-alive-seconds`, `queue-capacity`",
            ),
            (
                "thread-pool-param: { core-pool-size: 1001 }",
                "thread-pool-param.core-pool-size is 1001: it must be at most 1000 (connections)",
            ),
            (
                "thread-pool-param: { maxSize: 1 }",
                "thread-pool-param.maxSize is unknown: known here: `core-pool-size`, \
                 `max-pool-size`, `keep-alive-seconds`, `queue-capacity`",
            ),
            ("{ task-limit: 1, taskLimit: 2 }", "task-limit is given twice"),
        ];
        for (line, expected) in cases {
            let text = message(Config::from_yaml(&format!("task-retry:\n  {line}")));
            assert_eq!(text, format!("task-retry.{expected}"), "{line}");
        }
        let text = message(Config::from_yaml("task-retry: 5"));
        assert!(
            text.starts_with("task-retry is 5: it must be a section with `enable`, "),
            "{text}"
        );
        let text = message(Config::from_toml("[task-retry]\ntask-limit = 2024-02-29"));
        assert!(text.starts_with("task-retry.task-limit is "), "{text}");
    }

    #[test]
    fn unknown_keys_name_the_known_ones() {
        let cases = [
            ("task-limt: 1", "task-limt", "task-limit"),
            ("taskLimits: 1", "taskLimits", "task-limit"),
            ("max-retry: 1", "max-retry", "task-max-retry"),
            ("enabled: 1", "enabled", "enable"),
            ("max-pool-size: 1", "max-pool-size", "thread-pool-param.max-pool-size"),
            ("thread-pool: { a: 1 }", "thread-pool", "thread-pool-param"),
        ];
        for (line, name, meant) in cases {
            let text = message(Config::from_yaml(&format!("task-retry: {{ {line} }}")));
            let hint =
                format!("task-retry.{name} is unknown: did you mean `{meant}`? known here: ");
            assert!(text.starts_with(&hint), "{text}");
            assert!(text.contains("`enable`, `job`, ") && text.contains(", `thread-pool-param`, "));
        }
        for yaml in ["task-retry: { '': { task-limit: 1 } }", "task-retry: { '': 1 }"] {
            assert!(message(Config::from_yaml(yaml)).starts_with("task-retry is unknown: "));
        }
        let text = message(Config::from_yaml("task-retry: { rabbit: { port: 1 } }"));
        assert!(text.starts_with("task-retry.rabbit is unknown: known here: `enable`, "), "{text}");
    }

    #[test]
    fn keys_beside_the_section_are_not_lost_in_silence() {
        assert_eq!(
            message(Config::from_toml("task-limit = 50\njob = true\n[threadPoolParam]")),
            "2 mistakes:\n\
             - `task-limit` stands outside the section `task-retry`\n\
             - `threadPoolParam` stands outside the section `task-retry`"
        );
        let both = "[lease-second]\n[task-retry]\njob = false";
        assert_eq!(Config::from_toml(both).unwrap(), Config { job: false, ..Config::default() });
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let yaml = "
            task-retry:
              lease-second: 2
              enable: perhaps
              thread-pool-param: { max-pool-size: 0, corePolSize: 1 }
              jitter: 2
        ";
        let expected = "5 mistakes:\n\
             - task-retry.lease-second is 2: it must be at least 5 (seconds)\n\
             - task-retry.enable is \"perhaps\": it must be true or false\n\
             - task-retry.thread-pool-param.max-pool-size is 0: it must be at least 1 (attempts)\n\
             - task-retry.thread-pool-param.corePolSize is unknown: did you mean \
             `thread-pool-param.core-pool-size`? known here: `core-pool-size`, `max-pool-size`, \
             `keep-alive-seconds`, `queue-capacity`\n\
             - task-retry.jitter is 2: it must be at most 1";
        assert_eq!(message(Config::from_yaml(yaml)), expected);
    }

    #[test]
    fn broken_documents_are_errors_that_tell_no_secrets() {
        for yaml in ["task-retry: [", "- a", "text", "a: 1\na: 2", "password: hunter2\n  x: y"] {
            let text = message(Config::from_yaml(yaml));
            assert!(text.starts_with("not valid YAML: "), "{yaml}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
        let text = message(Config::from_yaml("a: 1\n---\ntask-retry: {}"));
        assert_eq!(text, "more than one YAML document: put `task-retry` into a file of its own");
        let text = message(Config::from_toml("a = 1\npassword = hunter2"));
        assert!(text.starts_with("not valid TOML: line 2: "), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn files_are_read_by_extension() {
        let folder = std::env::temp_dir().join(format!("task-retry-config-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for (name, text) in [("a.yaml", YAML), ("b.YML", YAML), ("c.toml", TOML)] {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            assert_eq!(Config::from_file(&path).unwrap(), other());
        }
        let bad = folder.join("bad.toml");
        std::fs::write(&bad, "[task-retry]\nlease-second = 2").unwrap();
        assert_eq!(
            message(Config::from_file(&bad)),
            format!(
                "{}: task-retry.lease-second is 2: it must be at least 5 (seconds)",
                bad.display()
            )
        );
        let latin1 = folder.join("latin1.yaml");
        std::fs::write(&latin1, b"a: \xe9").unwrap();
        assert!(message(Config::from_file(&latin1)).starts_with("cannot read "));
        std::fs::remove_dir_all(&folder).unwrap();

        let text = message(Config::from_file("nowhere/shop.yaml"));
        assert!(text.starts_with("cannot read nowhere/shop.yaml: "), "{text}");
        for path in ["shop.json", "shop", ".yaml", ""] {
            assert_eq!(
                message(Config::from_file(path)),
                format!("{path}: a configuration file is .yaml, .yml or .toml")
            );
        }
    }

    #[test]
    fn no_document_panics() {
        fastrand::seed(5);
        for _ in 0..3000 {
            let text = random_text(60);
            for text in
                [text.clone(), format!("task-retry:\n  {text}"), format!("[task-retry]\n{text}")]
            {
                for config in
                    [Config::from_yaml(&text), Config::from_toml(&text)].into_iter().flatten()
                {
                    config.validate().unwrap();
                }
            }
        }
        for deep in ["[", "{a: ", "- ", "? ", "a: ["] {
            let deep = deep.repeat(20_000);
            for text in [deep.clone(), format!("task-retry: {deep}"), format!("a = {deep}")] {
                assert!(Config::from_yaml(&text).is_err() && Config::from_toml(&text).is_err());
            }
        }
        assert!(Config::from_toml(&format!("{}x = 1", "a.".repeat(20_000))).is_err());
        assert!(Config::from_toml(&format!("task-retry.{}x = 1", "a.".repeat(50))).is_err());
    }
}
