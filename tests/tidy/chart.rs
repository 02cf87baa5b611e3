//! The Helm chart, rendered by Helm where it is there, else by `tests/chart/render.go`: what it makes and what it refuses.

#![allow(clippy::unwrap_used)]

use std::{fs, path::PathBuf, process::Command, sync::LazyLock};

use yaml_rust2::{Yaml, YamlLoader};

use crate::{
    packaging::{all_output, assert_command, has, is_known_variable, keys, read, skipped, strings, tool, yaml},
    tidy::root,
};

/// What every installation has to say.
const REQUIRED: &str = "
run: {postgres: {url: 'postgres://walhook_streamer@db:5432/app', passwordSecret: {name: run-password}}}
deliver: {postgres: {url: 'postgres://walhook_worker@db:5432/app', passwordSecret: {name: deliver-password}}}
http: {tokenSecret: {name: token}}
";

/// Everything that is off by default.
const ALL: &str = "
setup: {enabled: true, postgres: {url: 'postgres://admin@db:5432/app', passwordSecret: {name: admin-password}}, extraArgs: [--slot, other]}
run: {replicas: 2, extraArgs: [--slot, other], extraEnv: [{name: WALHOOK_LOG, value: debug}]}
deliver: {allowedNetworks: [10.1.0.0/16, 'fd00::/8']}
nats: {url: 'nats://nats:4222', credentialsSecret: {name: nats-login}}
postgresCa: {configMap: authority}
serviceMonitor: {enabled: true, labels: {release: prometheus}}
networkPolicy:
  enabled: true
  metricsFrom: [{namespaceSelector: {matchLabels: {name: monitoring}}}]
  postgresTo: [{ipBlock: {cidr: 10.0.0.5/32}}]
imagePullSecrets: [{name: registry}]
serviceAccount: {annotations: {a: b}}
podAnnotations: {a: b}
podLabels: {c: d}
nodeSelector: {disk: ssd}
tolerations: [{key: a, operator: Exists}]
affinity: {nodeAffinity: {}}
shutdownTimeoutMs: 45000
config: |
  status_interval_ms = 5000
  [deliver]
  max_in_flight = 100
";

/// Helm, where it can be had.
fn helm() -> Option<&'static PathBuf> {
    static HELM: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| tool("helm", "version", "the chart is not rendered by Helm, and its schema not checked"));
    HELM.as_ref()
}

/// The manifests, or why there are none; `None` where the machine can render no chart.
fn render(values: &[&str]) -> Option<Result<Vec<Yaml>, String>> {
    let folder = tempfile::tempdir().unwrap();
    let files = values.iter().enumerate().map(|(number, text)| {
        let path = folder.path().join(format!("{number}.yaml"));
        fs::write(&path, text).unwrap();
        path
    });
    let chart = root().join("charts/walhook");
    let mut command;
    if let Some(helm) = helm() {
        command = Command::new(helm);
        // One that Go has built takes itself for a client of an old Kubernetes.
        command.args(["template", "test", "--kube-version", "1.31.0"]).arg(chart);
        for file in files {
            command.arg("--values").arg(file);
        }
    } else if has("go", "version", "the chart is not rendered, for want of Helm and Go") {
        command = Command::new("go");
        command.current_dir(root().join("tests/chart")).args(["run", "."]).arg(chart).args(files);
    } else {
        return None;
    }
    let output = command.output().unwrap();
    if output.status.success() {
        let documents = YamlLoader::load_from_str(&String::from_utf8(output.stdout).unwrap()).unwrap();
        return Some(Ok(documents.into_iter().filter(|document| !document.is_null()).collect()));
    }
    let said = all_output(&output);
    if said.contains("dial tcp") || said.contains("proxy.golang.org") {
        skipped("the chart is not rendered", &format!("Go cannot fetch what the renderer needs: {said}"));
        return None;
    }
    Some(Err(said))
}

fn of_kind<'m>(manifests: &'m [Yaml], kind: &str) -> Vec<&'m Yaml> {
    manifests.iter().filter(|one| one["kind"].as_str() == Some(kind)).collect()
}

fn list(yaml: &Yaml) -> Vec<Yaml> {
    yaml.as_vec().cloned().unwrap_or_default()
}

fn name(yaml: &Yaml) -> String {
    yaml["name"].as_str().unwrap().to_owned()
}

/// What is right of each Deployment, whatever the values.
fn assert_deployment(deployment: &Yaml, toml: &toml::Table) {
    let spec = &deployment["spec"];
    let pod = &spec["template"]["spec"];
    let container = &pod["containers"][0];
    let args = strings(&container["args"]);
    assert_command(&args, "charts/walhook");
    let strategy = if args[0] == "run" { "Recreate" } else { "RollingUpdate" };
    assert_eq!(spec["strategy"]["type"].as_str(), Some(strategy));
    for (label, value) in spec["selector"]["matchLabels"].as_hash().unwrap() {
        assert_eq!(&spec["template"]["metadata"]["labels"][label.as_str().unwrap()], value);
    }
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        assert_eq!(container[probe]["httpGet"]["path"].as_str(), Some(path));
        assert_eq!(container[probe]["httpGet"]["port"].as_str(), Some("http"));
    }
    let port = container["ports"][0]["containerPort"].as_i64().unwrap();
    assert_eq!(toml["http"]["listen"].as_str().unwrap(), format!("0.0.0.0:{port}"));
    let grace = pod["terminationGracePeriodSeconds"].as_i64().unwrap();
    assert!(grace * 1000 >= toml["shutdown_timeout_ms"].as_integer().unwrap() + 5000, "{grace} s");
    assert_eq!(pod["securityContext"]["runAsNonRoot"].as_bool(), Some(true));
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"].as_bool(), Some(true));
    let volumes: Vec<_> = list(&pod["volumes"]).iter().map(name).collect();
    let mounts = list(&container["volumeMounts"]);
    assert_eq!(mounts.iter().map(name).collect::<Vec<_>>(), volumes);
    let secrets = &list(&pod["volumes"])[1]["projected"]["sources"];
    let folder = mounts[1]["mountPath"].as_str().unwrap();
    let mut files: Vec<_> = list(secrets)
        .iter()
        .flat_map(|source| list(&source["secret"]["items"]))
        .map(|item| format!("{folder}/{}", item["path"].as_str().unwrap()))
        .collect();
    for variable in list(&container["env"]) {
        let (name, value) = (name(&variable), variable["value"].as_str().unwrap_or_default());
        assert!(is_known_variable(&name), "walhook reads no {name}");
        assert!(!["PGPASSWORD", "NATS_PASSWORD", "NATS_TOKEN"].contains(&name.as_str()), "{name} is no file");
        files.retain(|file| file != value);
    }
    let token = toml["http"]["token_file"].as_str().unwrap();
    assert_eq!(files, [token], "secrets that are mounted and not used, or the other way round");
}

fn settings_of(manifests: &[Yaml]) -> toml::Table {
    let toml: toml::Table =
        of_kind(manifests, "ConfigMap").last().unwrap()["data"]["walhook.toml"].as_str().unwrap().parse().unwrap();
    let known = read("config/walhook.toml");
    let inner = toml.values().filter_map(toml::Value::as_table).flat_map(toml::Table::keys);
    for key in toml.keys().chain(inner) {
        assert!(known.contains(key.as_str()), "walhook has no setting {key}");
    }
    toml
}

#[test]
fn the_chart_makes_two_hardened_deployments_with_probes_and_secrets_as_files() {
    let Some(manifests) = render(&[REQUIRED]) else { return };
    let manifests = manifests.unwrap();
    let toml = settings_of(&manifests);
    let deployments = of_kind(&manifests, "Deployment");
    assert_eq!(deployments.len(), 2);
    deployments.iter().for_each(|deployment| assert_deployment(deployment, &toml));
    for (kind, count) in [
        ("Service", 2),
        ("PodDisruptionBudget", 2),
        ("ServiceAccount", 1),
        ("ServiceMonitor", 0),
        ("NetworkPolicy", 0),
        ("Secret", 0),
        ("Job", 0),
    ] {
        assert_eq!(of_kind(&manifests, kind).len(), count, "{kind}");
    }
}

#[test]
fn the_chart_with_everything_on_is_still_one_that_walhook_understands() {
    let Some(manifests) = render(&[REQUIRED, ALL]) else { return };
    let manifests = manifests.unwrap();
    let toml = settings_of(&manifests);
    assert_eq!(toml["deliver"]["max_in_flight"].as_integer(), Some(100));
    let deployments = of_kind(&manifests, "Deployment");
    deployments.iter().for_each(|deployment| assert_deployment(deployment, &toml));
    let pod = &deployments[0]["spec"]["template"]["spec"];
    assert_eq!(pod["terminationGracePeriodSeconds"].as_i64(), Some(55));
    assert_eq!(of_kind(&manifests, "ServiceMonitor").len(), 1);
    let monitor = of_kind(&manifests, "ServiceMonitor")[0];
    let labels = &of_kind(&manifests, "Service")[0]["metadata"]["labels"];
    for (label, value) in monitor["spec"]["selector"]["matchLabels"].as_hash().unwrap() {
        assert_eq!(&labels[label.as_str().unwrap()], value, "the ServiceMonitor finds the Services");
    }
    let job = of_kind(&manifests, "Job")[0];
    assert_eq!(job["metadata"]["annotations"]["helm.sh/hook"].as_str(), Some("pre-install,pre-upgrade"));
    let setup = &job["spec"]["template"]["spec"];
    assert_command(&strings(&setup["containers"][0]["args"]), "charts/walhook: setup");
    assert_eq!(setup["containers"][0]["securityContext"]["readOnlyRootFilesystem"].as_bool(), Some(true));
    assert_eq!(setup["securityContext"]["runAsNonRoot"].as_bool(), Some(true));
    // What a hook before the installation needs is a hook itself: nothing else is there then.
    let settings = setup["volumes"][0]["configMap"]["name"].as_str().unwrap();
    let of_hook = of_kind(&manifests, "ConfigMap");
    let of_hook = of_hook.iter().find(|map| map["metadata"]["name"].as_str() == Some(settings)).unwrap();
    assert_eq!(of_hook["metadata"]["annotations"]["helm.sh/hook"].as_str(), Some("pre-install,pre-upgrade"));
    assert!(setup["serviceAccountName"].is_badvalue(), "the chart's account is made after the hook");
    let policies = of_kind(&manifests, "NetworkPolicy");
    let ways = policies.iter().map(|policy| list(&policy["spec"]["egress"]).len()).collect::<Vec<_>>();
    assert_eq!(ways, [3, 4], "DNS, PostgreSQL, NATS; and the webhooks for deliver alone");

    // One process alone.
    let run_alone = "deliver: {enabled: false}";
    let manifests = render(&[REQUIRED, run_alone]).unwrap().unwrap();
    assert_eq!(of_kind(&manifests, "Deployment").len(), 1);
}

#[test]
fn the_chart_is_refused_without_its_secrets_and_says_what_to_set() {
    for (values, expected) in [
        (vec![], "set run.postgres.url to the database"),
        (
            vec![REQUIRED, "run: {postgres: {passwordSecret: {name: ''}}}"],
            "set run.postgres.passwordSecret.name to a Secret",
        ),
        (
            vec![REQUIRED, "deliver: {postgres: {passwordSecret: {name: ''}}}"],
            "set deliver.postgres.passwordSecret.name to a Secret",
        ),
        (
            vec![REQUIRED, "setup: {enabled: true, postgres: {url: 'postgres://admin@db/app'}}"],
            "set setup.postgres.passwordSecret.name to a Secret",
        ),
        (vec![REQUIRED, "http: {tokenSecret: {name: ''}}"], "set http.tokenSecret.name to a Secret with a token"),
        (
            vec![REQUIRED, "run: {postgres: {url: 'postgres://u:secret@db/app'}}"],
            "run.postgres.url has a password in it",
        ),
        (vec![REQUIRED, "run: {replicas: 3}"], "set run.replicas to 1 or 2"),
        (vec![REQUIRED, "config: '[http]'"], "leave [http] and shutdown_timeout_ms out of config"),
        (vec![REQUIRED, "postgresCa: {configMap: a, secret: b}"], "set postgresCa.configMap or postgresCa.secret"),
    ] {
        let Some(outcome) = render(&values) else { return };
        let said = outcome.expect_err(expected);
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

#[test]
fn helm_refuses_values_that_the_chart_does_not_have_and_finds_nothing_to_complain_of() {
    let Some(helm) = helm() else { return };
    for (values, expected) in [
        ("runn: {replicas: 1}", "runn"),
        ("run: {replicas: two}", "replicas"),
        ("run: {postgres: {password: secret}}", "password"),
        ("http: {port: 99999}", "port"),
        ("nats: {credentialsSecret: {name: a, variable: NATS_PASSWORD}}", "variable"),
        ("logFormat: xml", "logFormat"),
    ] {
        let said = render(&[REQUIRED, values]).unwrap().expect_err(expected);
        assert!(
            said.contains("values don't meet the specifications of the schema") && said.contains(expected),
            "{said}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let (required, all) = (folder.path().join("required.yaml"), folder.path().join("all.yaml"));
    fs::write(&required, REQUIRED).unwrap();
    fs::write(&all, ALL).unwrap();
    let chart = root().join("charts/walhook");
    let mut lint = Command::new(helm);
    lint.args(["lint", "--strict"]).arg(chart).arg("--values").arg(required).arg("--values").arg(all);
    let output = lint.output().unwrap();
    assert!(output.status.success(), "{}", all_output(&output));
}

#[test]
fn the_schema_has_each_value_and_no_other() {
    let schema: serde_json::Value = serde_json::from_str(&read("charts/walhook/values.schema.json")).unwrap();
    fn compare(values: &Yaml, schema: &serde_json::Value, place: &str) {
        let Some(properties) = schema["properties"].as_object() else { return };
        let there = keys(values);
        for key in &there {
            assert!(properties.contains_key(key), "the schema does not have {place}{key}");
            compare(&values[key.as_str()], &properties[key], &format!("{place}{key}."));
        }
        let unknown: Vec<_> = properties.keys().filter(|key| *key != "global" && !there.contains(key)).collect();
        assert!(unknown.is_empty(), "values.yaml does not have {place}: {unknown:?}");
    }
    compare(&yaml(&read("charts/walhook/values.yaml")), &schema, "");
}

#[test]
fn every_value_is_explained_and_the_chart_has_the_version_of_walhook() {
    let values = yaml(&read("charts/walhook/values.yaml"));
    let page = read("docs/kubernetes.md");
    for key in keys(&values) {
        assert!(page.contains(&format!("`{key}")), "docs/kubernetes.md does not explain {key}");
    }
    let chart = yaml(&read("charts/walhook/Chart.yaml"));
    assert_eq!(chart["appVersion"].as_str(), Some(env!("CARGO_PKG_VERSION")));
}
