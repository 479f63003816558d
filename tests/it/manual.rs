//! `tenantd completions` and `tenantd man`: before any setting is there.

use crate::support::daemon::Program;

/// Goal: both work where nothing is set up, and know every command. Method: a program without any setting; each shell; a folder of pages.
#[tokio::test]
async fn completions_and_pages_need_no_settings() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = Program::bare(folder.path()).variable("TENANTD_MAIN__URL", "nonsense");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = program.run(&["completions", shell]).await;
        let knows = ["list", "create", "reverse"].iter().all(|word| script.stdout.contains(word));
        assert!(script.code() == 0 && knows && script.stderr.is_empty(), "{shell}: {}", script.stderr);
    }
    let unknown = program.run(&["completions", "tcsh"]).await;
    assert!(unknown.code() == 2 && unknown.stderr.contains("bash"), "{unknown:?}");
    let page = program.run(&["man"]).await;
    assert!(
        page.code() == 0 && page.stdout.contains(".TH tenantd 1") && page.stdout.contains("Exit codes"),
        "{page:?}"
    );
    let pages = folder.path().join("man1");
    std::fs::create_dir(&pages).expect("a folder");
    assert_eq!(program.run(&["man", "--out", "man1"]).await.code(), 0);
    for page in ["tenantd.1", "tenantd-list.1", "tenantd-config-check.1"] {
        assert!(std::fs::read_to_string(pages.join(page)).is_ok_and(|text| text.contains("tenantd")), "{page}");
    }
    let nowhere = program.run(&["man", "--out", "nowhere"]).await;
    assert!(nowhere.code() == 2 && nowhere.stderr.contains("write man pages into nowhere"), "{nowhere:?}");
}
