//! A mirror as a group's disk: attached, checked, mounted. It is Primary already when this begins,
//! and stays so until after it ends: that is the right's business.

use super::{Subject, mount};
use crate::config::resource::Mirror;
use crate::process::{Deadline, Step};

pub(super) async fn start(subject: Subject<'_>, own: &Mirror, deadline: Deadline) -> Step {
    let disk = &own.disk;
    let attach = subject
        .place
        .mirrors
        .attach(&disk.mirror, disk.driver, disk.device.as_deref());
    let device = deadline.wait(attach).await??;
    if disk.initial_mkfs {
        mount::make_file_system(subject, &device, &own.mount, deadline).await?;
    }
    mount::up(subject, &device, &own.mount, deadline).await
}

pub(super) async fn stop(subject: Subject<'_>, own: &Mirror, deadline: Deadline) -> Step {
    mount::down(subject, &own.mount, deadline).await?;
    // A daemon that does not say refuses to detach what is in use, or is not there to do it.
    let asked = deadline
        .wait(subject.place.mirrors.status(&own.disk.mirror))
        .await?;
    let device = asked.ok().and_then(|status| status.device);
    mount::quiet(subject, device.as_deref(), None, deadline).await?;
    let detach = subject.place.mirrors.detach(&own.disk.mirror);
    Ok(deadline.wait(detach).await??)
}
