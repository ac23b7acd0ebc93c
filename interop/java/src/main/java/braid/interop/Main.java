package braid.interop;

import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import java.lang.reflect.Method;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/** Runs the scenarios of interop/SCENARIOS.md with the RabbitMQ Java client. */
public final class Main {

    static String uri = System.getenv("BRAID_AMQP_URI");
    static String peer = "auto";
    static String restartCmd;

    public static void main(String[] args) throws Exception {
        Set<String> only = new LinkedHashSet<>();
        boolean list = false;
        for (int i = 0; i < args.length; i++) {
            switch (args[i]) {
                case "--uri" -> uri = value(args, ++i);
                case "--only" -> only.addAll(Arrays.asList(value(args, ++i).split(",")));
                case "--list" -> list = true;
                case "--peer" -> peer = value(args, ++i);
                case "--restart-cmd" -> restartCmd = value(args, ++i);
                default -> usage("unknown argument " + args[i]);
            }
        }
        List<Method> all = scenarios();
        if (list) {
            for (Method m : all) {
                System.out.println(number(m) + " " + name(m));
            }
            return;
        }
        if (uri == null) {
            usage("no --uri, and BRAID_AMQP_URI is not set");
        }
        if (!List.of("auto", "braid", "rabbitmq").contains(peer)) {
            usage("--peer is auto, braid or rabbitmq");
        }
        List<Method> chosen = new ArrayList<>();
        boolean everything = only.isEmpty();
        for (Method m : all) {
            if (everything || only.remove(name(m)) | only.remove(number(m))
                    | only.remove(number(m).replaceFirst("^0", ""))) {
                chosen.add(m);
            }
        }
        if (!only.isEmpty()) {
            usage("no scenario " + only);
        }
        ConnectionFactory factory = factory();
        boolean rabbitBefore4 = findPeer(factory);
        boolean good = true;
        for (Method m : chosen) {
            good &= run(m, factory, rabbitBefore4);
        }
        System.exit(good ? 0 : 1);
    }

    static ConnectionFactory factory() throws Exception {
        ConnectionFactory f = new ConnectionFactory();
        f.setUri(uri);
        if (f.getVirtualHost().isEmpty()) {
            f.setVirtualHost("/"); // "amqp://host:port/" means the default vhost here, as in most other clients
        }
        f.setAutomaticRecoveryEnabled(false);
        return f;
    }

    /** Settles `peer`; true if it is a RabbitMQ older than 4.0. */
    private static boolean findPeer(ConnectionFactory factory) throws Exception {
        try (Connection c = Kit.connectPatiently(factory, 10)) {
            if (peer.equals("auto")) {
                peer = c.getServerProperties().containsKey("braid") ? "braid" : "rabbitmq";
            }
            String version = String.valueOf(c.getServerProperties().get("version"));
            System.err.println("peer " + peer + ", version " + version);
            return peer.equals("rabbitmq") && Integer.parseInt(version.split("\\.")[0]) < 4;
        }
    }

    private static boolean run(Method m, ConnectionFactory factory, boolean rabbitBefore4) {
        String label = number(m) + " " + name(m);
        long limit = number(m).equals("17") ? 60 : 20;
        Kit kit = new Kit(factory, peer.equals("rabbitmq"), rabbitBefore4, restartCmd);
        FutureTask<Void> task = new FutureTask<>(() -> {
            m.invoke(null, kit);
            return null;
        });
        Thread thread = new Thread(task, label);
        thread.setDaemon(true);
        thread.start();
        String line;
        try {
            task.get(limit, TimeUnit.SECONDS);
            line = "ok " + label;
        } catch (TimeoutException e) {
            StringBuilder at = new StringBuilder();
            for (StackTraceElement frame : thread.getStackTrace()) {
                if (frame.getClassName().equals(Scenarios.class.getName())) {
                    at.append(" at line ").append(frame.getLineNumber());
                    break;
                }
            }
            task.cancel(true);
            line = "not ok " + label + ": not finished after " + limit + " s" + at;
        } catch (ExecutionException | InterruptedException e) {
            Throwable cause = e;
            while (cause instanceof ExecutionException || cause instanceof java.lang.reflect.InvocationTargetException) {
                cause = cause.getCause();
            }
            if (cause instanceof Kit.Skip) {
                line = "skip " + label + ": " + cause.getMessage();
            } else {
                cause.printStackTrace();
                line = "not ok " + label + ": " + reason(cause);
            }
        }
        kit.cleanUp();
        System.out.println(line);
        System.out.flush();
        return !line.startsWith("not ok");
    }

    private static String reason(Throwable t) {
        StringBuilder s = new StringBuilder();
        for (Throwable c = t; c != null; c = c.getCause()) {
            if (s.length() > 0) {
                s.append(" / ");
            }
            s.append(c instanceof Kit.Failed ? "" : c.getClass().getSimpleName() + ": ").append(c.getMessage());
        }
        return s.toString().replaceAll("\\s+", " ");
    }

    /** Every static method of Scenarios named sNN_name. */
    private static List<Method> scenarios() {
        List<Method> found = new ArrayList<>();
        for (Method m : Scenarios.class.getDeclaredMethods()) {
            if (m.getName().matches("s\\d\\d_.*")) {
                found.add(m);
            }
        }
        found.sort(Comparator.comparing(Method::getName));
        return found;
    }

    private static String number(Method m) {
        return m.getName().substring(1, 3);
    }

    private static String name(Method m) {
        return m.getName().substring(4);
    }

    private static String value(String[] args, int i) {
        if (i >= args.length) {
            usage(args[i - 1] + " needs a value");
        }
        return args[i];
    }

    private static void usage(String problem) {
        System.err.println(problem);
        System.err.println("usage: run.sh [--uri URI] [--only NN|NAME[,...]]... [--list] [--peer auto|braid|rabbitmq] [--restart-cmd CMD]");
        System.exit(2);
    }
}
